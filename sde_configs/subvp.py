"""Sub-VP SDE, noise prediction (Song et al. 2021)."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "SubVPSDE", "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-5, "t_max": 1.0})
    return config

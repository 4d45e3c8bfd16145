"""VE SDE (Song et al. 2021), with EDM's preconditioning: the noise reaches 50 times the data's scale."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "VESDE", "sigma_min": 0.01, "sigma_max": 50.0, "t_min": 1e-5, "t_max": 1.0})
    config.objective.weighting = ConfigDict({"name": "EDMWeighting"})
    return config

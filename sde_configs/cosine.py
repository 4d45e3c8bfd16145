"""Cosine schedule (Nichol and Dhariwal 2021), noise prediction."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "CosineSDE", "s": 0.008, "t_min": 1e-4, "t_max": 0.995})
    return config

"""Variational diffusion: a learned schedule, trained with the network on the bound (Kingma et al. 2021)."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "LearnedVPSDE", "gamma_min": -13.3, "gamma_max": 5.0, "num_segments": 64})
    config.objective = ConfigDict({"name": "VariationalObjective"})
    config.training.dequantize = True  # a density of whole numbers has no bound
    return config

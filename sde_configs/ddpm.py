"""DDPM: the chain of 1000 levels and L_simple (Ho et al. 2020)."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "DiscreteVPSDE", "beta_start": 1e-4, "beta_end": 0.02, "num_levels": 1000})
    config.parametrization.name = "NoiseParametrization"
    config.objective.times = ConfigDict({"name": "DiscreteTimes"})
    return config

"""EDM: its path, preconditioning, weight and distribution of noise levels (Karras et al. 2022)."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "EDMSDE", "t_min": 0.002, "t_max": 80.0})
    config.parametrization.name = "EDMParametrization"
    config.objective.times = ConfigDict({"name": "LogNormalNoiseLevels", "mean": -1.2, "std": 1.2})
    config.objective.weighting = ConfigDict({"name": "EDMWeighting"})
    return config

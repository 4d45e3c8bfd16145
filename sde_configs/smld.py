"""SMLD: the ladder of 1000 noise levels and the discrete loss of score matching with Langevin dynamics, under VE."""

from ml_collections import ConfigDict

from sde_configs import ve


def get_config() -> ConfigDict:
    config = ve.get_config()
    config.parametrization.name = "NoiseParametrization"
    config.objective.times = ConfigDict({"name": "LadderTimes"})
    config.objective.weighting = ConfigDict({"name": "NoiseWeighting"})
    return config

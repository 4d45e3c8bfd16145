"""Rectified flow: the straight path, with the velocity of Salimans and Ho as the network's output."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "RectifiedFlowSDE", "t_min": 1e-3, "t_max": 0.995})
    config.parametrization.name = "VelocityParametrization"
    config.objective.weighting = ConfigDict({"name": "VelocityWeighting"})
    return config

"""Rectified flow: the straight path, its own loss |u_hat - (eps - x_0)|^2; the network emits Salimans and Ho's v."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = ConfigDict({"name": "RectifiedFlowSDE", "t_min": 1e-3, "t_max": 0.995})
    config.parametrization.name = "VelocityParametrization"
    config.objective.weighting = ConfigDict({"name": "FlowWeighting"})
    return config

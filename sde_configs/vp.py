"""VP SDE, noise prediction (Song et al. 2021; DDPM's objective in continuous time): the default."""

from sde_configs.default import get_config

__all__ = ["get_config"]

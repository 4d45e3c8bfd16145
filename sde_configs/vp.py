"""VP SDE (Song et al. 2021) with EDM's parametrisation: the default."""

from sde_configs.default import get_config

__all__ = ["get_config"]

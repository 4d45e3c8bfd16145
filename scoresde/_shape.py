"""Broadcasting of one number per sample over data of any shape."""

from __future__ import annotations

from torch import Tensor


def match_rank(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshapes a coefficient `()` or `(B,)` so that it multiplies `x` of shape `(B, *)` sample by sample."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))

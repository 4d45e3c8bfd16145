"""Small functions that stay accurate when the obvious formula loses digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sqrt_one_minus_exp(x: Tensor) -> Tensor:
    """sqrt(1 - e^x) for x <= 0, accurate to rounding even if e^x is nearly 1."""
    return torch.sqrt(-torch.expm1(x))


def invert_decreasing(function: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """Solves `function(t) = value` for t in [low, high] by bisection, to the rounding of `value`'s type."""
    a = torch.full_like(value, low)
    b = torch.full_like(value, high)
    for _ in range(64):
        middle = (a + b) / 2
        too_early = function(middle) > value
        a = torch.where(too_early, middle, a)
        b = torch.where(too_early, b, middle)
    return (a + b) / 2

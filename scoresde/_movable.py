"""What holds tensors and moves with them."""

from __future__ import annotations

import copy
from typing import Self, final

import torch
from torch import Tensor


class Movable:
    """An object whose attributes may be tensors, or such objects; they move together."""

    @final
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same on a device and in a floating-point type."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                moved = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                object.__setattr__(other, name, moved)
            elif isinstance(value, Movable):
                object.__setattr__(other, name, value.to(device, dtype))
        return other

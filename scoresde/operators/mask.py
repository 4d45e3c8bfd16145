"""Some entries of a sample: inpainting, outpainting, missing values."""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import AxesBasis, LinearOperator


@final
class Mask(LinearOperator):
    """y = the entries of x that are seen, in one row of numbers.

    Args:
        seen: booleans of the shape of a sample.
        shape: of a sample, if `seen` is to be repeated over channels, as a mask `(H, W)` of images `(3, H, W)`.

    Raises:
        UsageError: for a mask that shows all or nothing.

    Example:
        mask = Mask(torch.rand(3, 32, 32) < 0.5)
        y = mask(x)
    """

    def __init__(self, seen: Tensor, shape: tuple[int, ...] | None = None) -> None:
        require(seen.dtype == torch.bool, f"seen of {seen.dtype}: need booleans, True for what is measured")
        self.shape = tuple(seen.shape) if shape is None else tuple(shape)
        require(
            seen.shape == self.shape[len(self.shape) - seen.ndim :],
            f"seen of shape {tuple(seen.shape)}: need the shape of a sample, {self.shape}, or its last dimensions",
        )
        self.seen = seen.expand(self.shape).contiguous()
        count = int(self.seen.sum())
        require(count > 0, "seen: hides everything; nothing is measured")
        require(count < self.seen.numel(), "seen: hides nothing; there is nothing to find")
        self.measured_shape = (count,)
        self.places = self.seen.flatten().nonzero()[:, 0]

    @classmethod
    def box(cls, shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], inside: bool = False) -> Self:
        """All but a box of the last dimensions, from `low` up to but without `high`; or the box alone (outpainting)."""
        space = shape[len(shape) - len(low) :]
        require(
            len(low) == len(high) <= len(shape)
            and all(0 <= a < b <= n for a, b, n in zip(low, high, space, strict=True)),
            f"low={low}, high={high}: need 0 <= low < high <= {space} in each dimension",
        )
        within = torch.zeros(space, dtype=torch.bool)
        within[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        return cls(within if inside else ~within, shape)

    @classmethod
    def random(cls, shape: tuple[int, ...], share: float, seed: int = 0, dims: int | None = None) -> Self:
        """A share of the entries at random; with `dims`, of the places of the last dimensions, in all channels."""
        require(0 < share < 1, f"share={share}: need a number between 0 and 1")
        space = shape if dims is None else shape[len(shape) - dims :]
        size = math.prod(space)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        count = min(max(round(share * size), 1), size - 1)
        return cls((order < count).reshape(space), shape)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.places]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), math.prod(self.shape))
        x[:, self.places] = y
        return x.reshape(-1, *self.shape)

    @property
    def eigenbasis(self) -> AxesBasis:
        return AxesBasis(self.seen.to(torch.float64))

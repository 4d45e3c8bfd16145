"""Averages over channels or blocks: colourisation and super-resolution.

A reflection (Householder's) carries the direction of an average to the first axis, and is its own inverse. So the
average is one coordinate, and all others are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import Eigenbasis, LinearOperator


@final
class Grey(LinearOperator):
    """y = sum_c w_c x_c over the channels, the first dimension of a sample.

    Args:
        shape: of a sample.
        weights: one for each channel; by default equal ones of sum 1.
    """

    def __init__(self, shape: tuple[int, ...], weights: Sequence[float] | None = None) -> None:
        require(len(shape) >= 2 and shape[0] >= 2, f"shape={shape}: has no channels to make grey; need 2 or more")
        channels = shape[0]
        chosen = [1 / channels] * channels if weights is None else list(weights)
        require(len(chosen) == channels and any(chosen), f"weights={weights}: need {channels}, not all 0")
        self.shape = tuple(shape)
        self.measured_shape = (1, *shape[1:])
        self.weights = torch.tensor(chosen, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("bc...,c->b...", x, self.weights.to(x))[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.weights.to(y).reshape(-1, *[1] * (len(self.shape) - 1))

    @property
    def eigenbasis(self) -> Eigenbasis:
        return _ChannelBasis(self.weights, len(self.shape))


@final
class _ChannelBasis(Eigenbasis):
    def __init__(self, weights: Tensor, ndim: int) -> None:
        self.reflection = _reflection(weights)
        squares = torch.zeros_like(weights)
        squares[0] = weights.square().sum()
        self.values = squares.reshape(-1, *[1] * (ndim - 1))

    def into(self, x: Tensor) -> Tensor:
        return torch.einsum("bc...,cd->bd...", x, self.reflection.to(x))

    def out_of(self, coordinates: Tensor) -> Tensor:
        return self.into(coordinates)


@final
class BlockAverage(LinearOperator):
    """y = the means of blocks of `factor` entries in each dimension after the first, as in super-resolution.

    Args:
        shape: of a sample, channels first; each other dimension a multiple of the factor.
        factor: 2 or more.
    """

    def __init__(self, shape: tuple[int, ...], factor: int) -> None:
        space = shape[1:]
        require(factor >= 2, f"factor={factor}: need at least 2")
        require(
            len(space) > 0 and all(n % factor == 0 for n in space),
            f"factor={factor}: must divide every dimension after the channels, {space}",
        )
        self.shape = tuple(shape)
        self.factor = factor
        self.measured_shape = (shape[0], *(n // factor for n in space))

    def __call__(self, x: Tensor) -> Tensor:
        return _blocks(x, self.factor).mean(-1)

    def adjoint(self, y: Tensor) -> Tensor:
        size = self.factor ** (len(self.shape) - 1)
        return _from_blocks((y / size)[..., None].expand(*y.shape, size), self.factor)

    @property
    def eigenbasis(self) -> Eigenbasis:
        return _BlockBasis(self.factor, len(self.shape) - 1)


@final
class _BlockBasis(Eigenbasis):
    def __init__(self, factor: int, ndim: int) -> None:
        size = factor**ndim
        self.factor = factor
        self.reflection = _reflection(torch.ones(size, dtype=torch.float64))
        self.values = torch.zeros(size, dtype=torch.float64)
        self.values[0] = 1 / size

    def into(self, x: Tensor) -> Tensor:
        return _blocks(x, self.factor) @ self.reflection.to(x)

    def out_of(self, coordinates: Tensor) -> Tensor:
        return _from_blocks(coordinates @ self.reflection.to(coordinates), self.factor)


def _reflection(direction: Tensor) -> Tensor:
    """The symmetric orthogonal matrix that carries a direction `(n,)` to the first axis, and back."""
    unit = direction / torch.linalg.vector_norm(direction)
    unit = unit if unit[0] < 0 else -unit  # away from the axis, so that no digits are lost
    normal = unit.clone()
    normal[0] -= 1
    eye = torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    return eye - 2 * torch.outer(normal, normal) / normal.square().sum()


def _blocks(x: Tensor, factor: int) -> Tensor:
    """`(B, C, n f, m f, ...)` to `(B, C, n, m, ..., f^d)`."""
    ndim = x.ndim - 2
    split = [part for n in x.shape[2:] for part in (n // factor, factor)]
    x = x.reshape(*x.shape[:2], *split)
    outer = range(2, 2 + 2 * ndim, 2)
    inner = range(3, 3 + 2 * ndim, 2)
    return x.permute(0, 1, *outer, *inner).flatten(2 + ndim)


def _from_blocks(blocks: Tensor, factor: int) -> Tensor:
    """The inverse of `_blocks`."""
    ndim = blocks.ndim - 3
    x = blocks.reshape(*blocks.shape[:-1], *[factor] * ndim)
    order = [axis for k in range(ndim) for axis in (2 + k, 2 + ndim + k)]
    x = x.permute(0, 1, *order)
    space = [n * factor for n in blocks.shape[2:-1]]
    return x.reshape(*blocks.shape[:2], *space)

"""Blur by a kernel, and blur followed by taking every n-th entry (super-resolution)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import Eigenbasis, LinearOperator
from scoresde.operators.fourier import HartleyBasis

Padding = Literal["circular", "reflect", "replicate", "zeros", "none"]
MODES = {"reflect": "reflect", "replicate": "replicate", "zeros": "constant"}


@final
class Blur(LinearOperator):
    """Each channel convolved with one kernel.

    Args:
        shape: of a sample, channels first.
        kernel: one number a neighbour, with as many dimensions as a sample has after the channels.
        padding: what lies beyond the border: the other side ("circular"), its reflection, its nearest entry, zeros, or
            nothing: then only places are measured whose neighbours are all inside.
        stride: only every n-th place is measured, in each dimension.
    """

    def __init__(self, shape: tuple[int, ...], kernel: Tensor, padding: Padding = "circular", stride: int = 1) -> None:
        space = tuple(shape[1:])
        require(
            kernel.ndim == len(space) > 0 and all(k <= n for k, n in zip(kernel.shape, space, strict=True)),
            f"kernel of shape {tuple(kernel.shape)}: need {len(space)} dimensions, none larger than {space}",
        )
        paddings = ("circular", *MODES, "none")
        require(padding in paddings, f"padding={padding!r}: need one of {', '.join(paddings)}")
        require(stride >= 1, f"stride={stride}: need at least 1")
        self.shape = tuple(shape)
        self.kernel = kernel.flip(tuple(range(kernel.ndim)))  # a convolution, not a correlation
        self.padding = padding
        self.stride = stride
        full = [n - k + 1 if padding == "none" else n for n, k in zip(space, kernel.shape, strict=True)]
        self.measured_shape = (shape[0], *(-(-n // stride) for n in full))

    def __call__(self, x: Tensor) -> Tensor:
        if self.padding == "circular":
            blurred = self._convolved(x, conjugate=False)
        else:
            blurred = self._correlated(x)
        return blurred[self._strided]

    def adjoint(self, y: Tensor) -> Tensor:
        if self.padding != "circular":
            return super().adjoint(y)
        whole = y.new_zeros(len(y), *self.shape)
        whole[self._strided] = y
        return self._convolved(whole, conjugate=True)

    @property
    def eigenbasis(self) -> Eigenbasis | None:
        if self.padding == "circular" and self.stride == 1:
            response = self._response(self.kernel.double())
            return HartleyBasis(response.real.square() + response.imag.square())
        return super().eigenbasis

    @property
    def _strided(self) -> tuple[slice, ...]:
        """Every n-th place of each dimension after the batch and the channels."""
        return (slice(None), slice(None), *[slice(None, None, self.stride)] * (len(self.shape) - 1))

    def _correlated(self, x: Tensor) -> Tensor:
        """By a library's convolution, which takes one channel here, in one to three dimensions."""
        ndim = x.ndim - 2
        kernel = self.kernel.to(x)
        single = x.flatten(0, 1)[:, None]
        if self.padding != "none":
            pads = [side for k in reversed(kernel.shape) for side in ((k - 1) // 2, k // 2)]
            single = F.pad(single, pads, mode=MODES[self.padding])
        convolve = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
        return convolve(single, kernel[None, None]).reshape(*x.shape[:2], *self._full)

    @property
    def _full(self) -> list[int]:
        """Places before some are left out."""
        if self.padding != "none":
            return list(self.shape[1:])
        return [n - k + 1 for n, k in zip(self.shape[1:], self.kernel.shape, strict=True)]

    def _convolved(self, x: Tensor, conjugate: bool) -> Tensor:
        dims = tuple(range(2, x.ndim))
        response = self._response(self.kernel.to(x))
        if conjugate:
            response = response.conj()
        return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * response, dim=dims).real

    def _response(self, kernel: Tensor) -> Tensor:
        """The factor of each frequency."""
        dims = tuple(range(kernel.ndim))
        padded = F.pad(
            kernel.flip(dims),
            [
                side
                for n, k in zip(reversed(self.shape[1:]), reversed(kernel.shape), strict=True)
                for side in (0, n - k)
            ],
        )
        return torch.fft.fftn(padded.roll([-(k // 2) for k in kernel.shape], dims))


def gaussian_kernel(std: float, ndim: int = 2, radius: int | None = None) -> Tensor:
    """exp(-|i|^2 / (2 std^2)) up to a radius, 3 deviations by default, of sum 1."""
    require(std > 0, f"std={std}: must be positive")
    reach = math.ceil(3 * std) if radius is None else radius
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / std) ** 2)
    kernel = torch.ones((), dtype=torch.float64)
    for _ in range(ndim):
        kernel = kernel[..., None] * line
    return kernel / kernel.sum()


def motion_kernel(length: float, angle: float = 0.0, direction: Sequence[float] | None = None) -> Tensor:
    """Motion along a straight line in the plane, of sum 1: points of the line shared among their four neighbours.

    Args:
        length: of the line, in entries.
        angle: degrees from the second dimension (columns) towards the first.
        direction: of the line in each dimension, instead of an angle in the plane: for series and volumes.
    """
    require(length > 0, f"length={length}: must be positive")
    if direction is None:
        direction = (math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    along = torch.tensor(direction, dtype=torch.float64)
    require(bool(along.norm() > 0), f"direction={direction}: must not be 0")
    along = along / along.norm()
    reach = math.ceil(length / 2)
    kernel = torch.zeros([2 * reach + 1] * len(along), dtype=torch.float64)
    middles = (torch.arange(16 * reach, dtype=torch.float64) + 0.5) / (16 * reach) - 0.5
    points = length * middles[:, None] * along + reach
    low = points.floor()
    share = points - low
    for corner in torch.cartesian_prod(*[torch.arange(2)] * len(along)).reshape(-1, len(along)):
        weight = torch.where(corner == 1, share, 1 - share).prod(1)
        place = (low + corner).long().unbind(1)
        kernel.index_put_(place, weight, accumulate=True)
    return kernel / kernel.sum()

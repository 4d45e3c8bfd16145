"""Halving and doubling the size of features, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@final
class Resampler(nn.Module):
    """Halves sizes by means of neighbours and doubles them by repeating; with a kernel, by filtering.

    A kernel k of K taps is applied along each axis, as a convolution of each channel for itself: down keeps every
    second value of x * k / sum(k), up puts zeros between values and scales by 2, so that both keep a constant, up to
    the zeros beyond the borders (StyleGAN 2's resampling; Karras et al. 2020, Song et al. 2021, appendix H). Odd sizes
    are halved upwards.

    Args:
        dims: axes that are resampled.
        kernel: taps, symmetric and of even number, such as (1, 3, 3, 1); none for means and repeats.
    """

    kernel: Tensor

    def __init__(self, dims: int, kernel: Sequence[float] = ()) -> None:
        super().__init__()
        self.dims = dims
        self.taps = len(kernel)
        if kernel:
            taps = torch.tensor(kernel, dtype=torch.float64) / sum(kernel)
            outer = taps
            for _ in range(dims - 1):
                outer = outer[..., None] * taps
            self.register_buffer("kernel", outer.float(), persistent=False)

    def down(self, x: Tensor) -> Tensor:
        """Half the size."""
        if not self.taps:
            return POOL[self.dims](x, 2, ceil_mode=True, count_include_pad=False)
        return self._filtered(even(x), stride=2, padding=self.taps // 2 - 1)

    def up(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Twice the size, or a size that is one less along some axes."""
        size = [2 * n for n in x.shape[2:]] if size is None else size
        if not self.taps:
            return F.interpolate(x, size=list(size), mode="nearest")
        return cropped(self.spread(x, self.taps // 2 - 1), size)

    def smooth(self, x: Tensor) -> Tensor:
        """Filtered at full size, with what lies up to a tap beyond the borders: each size grows by 1."""
        return self._filtered(x, stride=1, padding=self.taps // 2)

    def _filtered(self, x: Tensor, stride: int, padding: int) -> Tensor:
        return CONVOLVE[self.dims](x, self._weight(x), stride=stride, padding=padding, groups=x.shape[1])

    def spread(self, x: Tensor, padding: int) -> Tensor:
        """Twice the size, less `padding` beyond each border."""
        weight = self._weight(x) * 2**self.dims
        return SPREAD[self.dims](x, weight, stride=2, padding=padding, groups=x.shape[1])

    def _weight(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype)
        return kernel.expand(x.shape[1], 1, *kernel.shape)


def even(x: Tensor) -> Tensor:
    """The features with zeros at the end of axes of odd size."""
    odd = [n % 2 for n in x.shape[2:]]
    return F.pad(x, [pad for n in reversed(odd) for pad in (0, n)]) if any(odd) else x


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The beginning of each axis, up to a size."""
    for axis, n in enumerate(size, start=2):
        if x.shape[axis] != n:
            x = x.narrow(axis, 0, n)
    return x

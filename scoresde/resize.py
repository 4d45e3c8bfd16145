r"""Resizing of series, images and volumes: one linear map, the same in training and in sampling, on every device.

Along each axis of n values, that is to have m, the value at place j is a weighted mean of those at places i,

    y_j = sum_i w_ji x_i / sum_i w_ji,   w_ji = k((c_j - i - 1/2) / s),   c_j = (j + 1/2) n / m,

for a kernel k. The width s is n/m where values become fewer and `antialias` is on, so that the kernel covers all values
that a new one stands for, and 1 otherwise. Beyond the ends there is nothing, so weights there are left out. This is
what Pillow computes, and torch with its flag `antialias`.

    kernel     k(u)
    bilinear   1 - |u|                                           for |u| < 1
    bicubic    1.5|u|^3 - 2.5|u|^2 + 1                           for |u| < 1 (Keys 1981, a = -1/2)
               -0.5|u|^3 + 2.5|u|^2 - 4|u| + 2                   for 1 <= |u| < 2
    area       the share of the new value's interval that lies in that of x_i; `antialias` changes nothing
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.errors import require, unknown_name

KERNELS = ("bicubic", "area", "bilinear")


def resize(x: Tensor, size: int | Sequence[int], kernel: str = "bicubic", antialias: bool = True) -> Tensor:
    """Samples `(B, C, *sizes)` of one to three axes at another size.

    Args:
        x: the samples, floating-point.
        size: of each axis behind the channels, or one number for all.
        kernel: "bicubic", "area" or "bilinear".
        antialias: filter where values become fewer.

    Raises:
        UsageError: for samples without such axes, or an unknown kernel.
    """
    check_kernel(kernel)
    axes = x.ndim - 2
    require(axes >= 1, f"x of shape {tuple(x.shape)}: has no axes to resize; need (batch, channels, *sizes)")
    require(x.is_floating_point(), f"x of type {x.dtype}: need floating-point values, as x.float()")
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    require(
        len(sizes) == axes and all(n >= 1 for n in sizes), f"size={size}: need {axes} positive numbers, or one for all"
    )
    for axis, (old, new) in enumerate(zip(x.shape[2:], sizes, strict=True), 2):
        if old != new:
            weights = _weights(old, new, kernel, antialias).to(x)
            x = (x.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return x.contiguous()


def check_kernel(kernel: str) -> None:
    """Raises `UsageError` for a kernel that is not known."""
    if kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int, kernel: str, antialias: bool) -> Tensor:
    """The map from `old` values to `new` ones, `(new, old)`, float64."""
    step = old / new
    edges = torch.arange(new + 1, dtype=torch.float64) * step
    places = torch.arange(old, dtype=torch.float64)
    if kernel == "area":
        upper = torch.minimum(edges[1:, None], places + 1)
        weights = (upper - torch.maximum(edges[:-1, None], places)).clamp(min=0)
    else:
        width = step if antialias and step > 1 else 1.0
        centers = (edges[1:] + edges[:-1]) / 2
        u = (centers[:, None] - places - 0.5).abs() / width
        weights = (1 - u).clamp(min=0) if kernel == "bilinear" else _cubic(u)
    return weights / weights.sum(1, keepdim=True)


def _cubic(u: Tensor) -> Tensor:
    near = 1.5 * u**3 - 2.5 * u**2 + 1
    far = -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u < 1, near, torch.where(u < 2, far, 0.0))

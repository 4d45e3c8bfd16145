"""The scaling of a data set to the model's units, chosen by its values alone: x and 10 x give the same batches.

A column is one number of a vector, or one channel of images, series and volumes `(N, C, ...)`.

- Vectors: mean 0 and deviation 1, column by column, as columns may have different units.
- Anything else: the range of the values to [-1, 1], as the field does for images, if they fill it well; otherwise mean
  0 and deviation 1 over all entries, if every channel then lies in `MODERATE`; otherwise channel by channel.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from scoresde.codec import RESOLVED, Scaling
from scoresde.data.file_array import FileArray, numpy_type
from scoresde.errors import require

SMALLEST_STD = 1 / 3  # of values that fill [-1, 1] well
LARGEST_MEAN = 1 / 2  # of the same, either way
MODERATE = (0.2, 2.0)  # deviations in the model's units that networks and noise ranges are made for
BLOCK = 2**22  # entries converted at a time


@final
@dataclass(frozen=True)
class Moments:
    """Means, deviations, smallest and largest values by column, `(C,)`, float64."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and deviation over all entries, to within a share of one in the number of samples."""
        mean = self.mean.mean()
        return mean.item(), (self.std.square() + (self.mean - mean).square()).mean().sqrt().item()


def moments(values: Tensor | FileArray) -> Moments:
    """The moments of samples `(N, C, ...)`, in two passes, without a float copy of all of them.

    The smallest or the largest value of a column that holds NaN or infinity is NaN or infinite.
    """
    columns = values.shape[1]
    count = values.numel() / columns
    size = max(1, BLOCK * len(values) // values.numel())

    def blocks() -> Iterator[Tensor]:
        return (block.reshape(len(block), columns, -1) for block in values.split(size))

    mean = torch.zeros(columns, dtype=torch.float64)
    low, high = mean + math.inf, mean - math.inf
    for block in blocks():
        mean += block.double().sum((0, 2)) / count
        torch.minimum(low, block.amin((0, 2)).double(), out=low)
        torch.maximum(high, block.amax((0, 2)).double(), out=high)
    variance = torch.zeros(columns, dtype=torch.float64)
    for block in blocks():  # a second time, because squares of a large mean would hide a small variance
        variance += (block.double() - mean[:, None]).square_().sum((0, 2)) / max(count - 1, 1)
    return Moments(mean, torch.where(low < high, variance.sqrt(), 0.0), low, high)


def fit_scaling(values: Tensor, source: str) -> Scaling:
    """The scaling of samples `(N, C, ...)`; the rules stand at the top of this module.

    Raises:
        UsageError: for values that are all equal, or too large or small to compute with.
    """
    return scaling_of(moments(values), values.ndim, source)


def scaling_of(found: Moments, ndim: int, source: str) -> Scaling:
    """The scaling of samples with these moments and this number of axes, `fit_scaling`."""
    mean, std = found.overall
    low = found.low.min().item()
    high = found.high.max().item()
    require(low < high, f"{source}: all values are equal; there is nothing to learn")
    require(0 < std < math.inf, f"{source}: values of deviation {std}; scale them to a moderate range")
    if ndim > 2:
        half = (high - low) / 2
        filled = abs(mean - low - half) <= LARGEST_MEAN * half and std >= SMALLEST_STD * half
        shared = Scaling(low + half, half) if filled else Scaling(mean, std)
        if _moderate(found, shared):
            return shared
    constant = (found.std == 0).nonzero().flatten().tolist()
    if constant:
        kind = "columns" if ndim == 2 else "channels"
        warnings.warn(
            f"{source}: {kind} {', '.join(map(str, constant[:10]))} hold a single value each; a density does not exist "
            "along them, and log densities mean nothing; leave them out",
            stacklevel=2,
        )
    return Scaling(tuple(found.mean.tolist()), tuple(torch.where(found.std > 0, found.std, 1.0).tolist()))


def suits(values: Tensor | FileArray, scaling: Scaling) -> bool:
    """Whether samples `(N, C, ...)` are moderate in a scaling, column by column; constant ones have any deviation."""
    numbers = [part if isinstance(part, tuple) else (part,) for part in (scaling.center, scaling.scale)]
    if any(len(part) not in (1, values.shape[1]) for part in numbers):
        return False
    found = moments(values)
    unit = torch.tensor(numbers[1], dtype=torch.float64).abs().expand_as(found.std)
    return _moderate(replace(found, std=torch.where(found.std > 0, found.std, unit)), scaling)


def _moderate(found: Moments, scaling: Scaling) -> bool:
    """Whether every channel has a moderate deviation, and a mean of at most 1, in the model's units."""
    center, scale = (torch.tensor(part, dtype=torch.float64) for part in (scaling.center, scaling.scale))
    mean = ((found.mean - center) / scale).abs()
    std = (found.std / scale).abs()
    least, most = MODERATE
    return bool(((mean <= 1) & (least <= std) & (std <= most)).all())


def as_tensor(values: np.ndarray) -> Tensor:
    """An array as a tensor of its `smallest_type`."""
    dtype = smallest_type(values)
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite
        return torch.from_numpy(values.astype(numpy_type(dtype), copy=False))


def smallest_type(values: np.ndarray | FileArray) -> torch.dtype:
    """The smallest type of a tensor that keeps some values.

    Whole numbers and truth values stay whole. Floats become float32, unless that would move a value by more than
    `RESOLVED` of its column's deviation, such as times in seconds since 1970.
    """
    kind = values.kind if isinstance(values, FileArray) else values.dtype
    if kind.kind in "bu" and kind.itemsize == 1:
        return torch.uint8
    if kind.kind in "iu":
        ends = [(int(block.min()), int(block.max())) for block in _raw_blocks(values)]
        low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0, 0)
        types = (torch.uint8, torch.int16, torch.int32, torch.int64)
        found = [one for one in types if torch.iinfo(one).min <= low and high <= torch.iinfo(one).max]
        require(bool(found), f"whole numbers up to {high}: need at most {torch.iinfo(torch.int64).max}")
        return found[0]
    if kind.itemsize <= 4 or values.size == 0 or values.ndim < 2 or _resolved(values):
        return torch.float32
    return torch.float64


def _resolved(values: np.ndarray | FileArray) -> bool:
    """Whether float32 resolves the columns of floats `(N, C, ...)`."""
    worst = torch.zeros(values.shape[1], dtype=torch.float64)
    for block in _raw_blocks(values):
        double = torch.from_numpy(block.astype(np.float64, copy=False))
        error = (double.float().double() - double).abs().reshape(len(double), values.shape[1], -1)
        worst = torch.maximum(worst, error.amax((0, 2)))
    double_values = (
        values.typed(torch.float64)
        if isinstance(values, FileArray)
        else torch.from_numpy(values.astype(np.float64, copy=False))
    )
    return not bool((worst > RESOLVED * moments(double_values).std).any())


def _raw_blocks(values: np.ndarray | FileArray) -> Iterator[np.ndarray]:
    """All values as they are stored, some samples at a time."""
    size = max(1, BLOCK * len(values) // max(1, values.size))
    places = (slice(start, start + size) for start in range(0, len(values), size))
    return (values.raw(place) if isinstance(values, FileArray) else values[place] for place in places)

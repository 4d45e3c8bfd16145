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
from scoresde.data.file_array import FileArray, ahead, numpy_type
from scoresde.errors import require

SMALLEST_STD = 1 / 3  # of values that fill [-1, 1] well
LARGEST_MEAN = 1 / 2  # of the same, either way
MODERATE = (0.2, 2.0)  # deviations in the model's units that networks and noise ranges are made for
BLOCK = 2**22  # entries converted at a time
LEVELS = 2**8  # of a byte
MAX_COUNTED = 16  # columns of which the values of bytes are counted


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


@final
class _Sums:
    """The moments of blocks of samples `(n, C, m)`: all are given to `first`, and then all to `second`.

    A second time, because squares of a large mean would hide a small variance.
    """

    def __init__(self, columns: int, count: float) -> None:
        self._count = count
        self._mean = torch.zeros(columns, dtype=torch.float64)
        self._variance = torch.zeros(columns, dtype=torch.float64)
        self._low, self._high = self._mean + math.inf, self._mean - math.inf
        self._room = torch.empty(0, dtype=torch.float64)  # for a block, as fresh memory costs more than to compute

    def first(self, block: Tensor) -> None:
        self._mean += self._double(block).sum((0, 2)) / self._count
        torch.minimum(self._low, block.amin((0, 2)).double(), out=self._low)
        torch.maximum(self._high, block.amax((0, 2)).double(), out=self._high)

    def second(self, block: Tensor) -> None:
        squares = self._double(block).sub_(self._mean[:, None]).square_()
        self._variance += squares.sum((0, 2)) / max(self._count - 1, 1)

    def _double(self, block: Tensor) -> Tensor:
        """A copy, which the next one overwrites; in the same layout, by which the order of a sum goes."""
        if not block.is_contiguous():
            return block.to(torch.float64, copy=True)
        if self._room.numel() < block.numel():
            self._room = torch.empty(block.numel(), dtype=torch.float64)
        return self._room[: block.numel()].view(block.shape).copy_(block)

    def moments(self) -> Moments:
        std = torch.where(self._low < self._high, self._variance.sqrt(), 0.0)
        return Moments(self._mean, std, self._low, self._high)


def moments(values: Tensor | FileArray) -> Moments:
    """The moments of samples `(N, C, ...)`, without a float copy of all of them: in two passes, or one for bytes.

    The smallest or the largest value of a column that holds NaN or infinity is NaN or infinite.
    """
    if values.dtype == torch.uint8 and values.shape[1] <= MAX_COUNTED:
        return _moments_of_bytes(values)
    sums = _Sums(values.shape[1], values.numel() / values.shape[1])
    for block in _blocks(values):
        sums.first(block)
    for block in _blocks(values):
        sums.second(block)
    return sums.moments()


def _blocks(values: Tensor | FileArray) -> Iterator[Tensor]:
    """All samples `(N, C, ...)`, some at a time, as `(n, C, m)`."""
    size = max(1, BLOCK * len(values) // values.numel())
    return (block.reshape(len(block), values.shape[1], -1) for block in values.split(size))


def _moments_of_bytes(values: Tensor | FileArray) -> Moments:
    """The moments of bytes, from how often each of their 256 values occurs in a column."""
    counts = torch.zeros(values.shape[1], LEVELS, dtype=torch.long)
    for block in _blocks(values):
        counts += count_bytes(block)
    levels = torch.arange(LEVELS, dtype=torch.float64)
    total = values.numel() / values.shape[1]
    mean = (counts * levels).sum(1) / total
    variance = (counts * (levels - mean[:, None]).square()).sum(1) / max(total - 1, 1)
    found = counts > 0
    low = torch.where(found, levels, math.inf).amin(1)
    high = torch.where(found, levels, -math.inf).amax(1)
    return Moments(mean, torch.where(low < high, variance.sqrt(), 0.0), low, high)


def count_bytes(values: Tensor) -> Tensor:
    """How often each value occurs in a column of bytes `(N, C, ...)`: `(C, 256)`."""
    columns = (values[:, c].reshape(-1) for c in range(values.shape[1]))
    return torch.stack([torch.bincount(column, minlength=LEVELS) for column in columns])


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
    return _typed(values, smallest_type(values)[0])


def typed_moments(values: np.ndarray | FileArray) -> tuple[Tensor | FileArray, Moments]:
    """Samples `(N, C, ...)` as a tensor of their `smallest_type`, or to be read as such, and their moments."""
    dtype, found = smallest_type(values)
    typed = values.typed(dtype) if isinstance(values, FileArray) else _typed(values, dtype)
    return typed, moments(typed) if found is None else found


def _typed(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite
        return torch.from_numpy(values.astype(numpy_type(dtype), copy=False))


def smallest_type(values: np.ndarray | FileArray) -> tuple[torch.dtype, Moments | None]:
    """The smallest type of a tensor that keeps some values, and their moments in this type if they had to be looked at.

    Whole numbers and truth values stay whole. Floats become float32, unless that would move a value by more than
    `RESOLVED` of its column's deviation, such as times in seconds since 1970.
    """
    kind = values.kind if isinstance(values, FileArray) else values.dtype
    if kind.kind in "bu" and kind.itemsize == 1:
        return torch.uint8, None
    if values.size == 0 or values.ndim < 2 or (kind.kind == "f" and kind.itemsize <= 4):
        return (torch.uint8 if kind.kind in "iu" else torch.float32), None
    return _type_of_whole(values) if kind.kind in "iu" else _type_of_doubles(values)


def _type_of_whole(values: np.ndarray | FileArray) -> tuple[torch.dtype, Moments]:
    """The smallest type of whole numbers, and their moments, in two passes."""
    sums = _Sums(values.shape[1], values.size / values.shape[1])
    ends = []
    for block in _raw_blocks(values):
        ends.append((int(block.min()), int(block.max())))
        sums.first(_doubles(block))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    found = [one for one in types if torch.iinfo(one).min <= low and high <= torch.iinfo(one).max]
    require(bool(found), f"whole numbers up to {high}: need at most {torch.iinfo(torch.int64).max}")
    for block in _raw_blocks(values):
        sums.second(_doubles(block))
    return found[0], sums.moments()


def _type_of_doubles(values: np.ndarray | FileArray) -> tuple[torch.dtype, Moments]:
    """float32 if it resolves the columns of float64 values, otherwise float64, and the moments, in two passes."""
    double, single = (_Sums(values.shape[1], values.size / values.shape[1]) for _ in range(2))
    worst = torch.zeros(values.shape[1], dtype=torch.float64)
    for block in map(_doubles, _raw_blocks(values)):
        rounded = block.float()
        worst = torch.maximum(worst, (rounded.double() - block).abs().amax((0, 2)))
        double.first(block)
        single.first(rounded)
    for block in map(_doubles, _raw_blocks(values)):
        double.second(block)
        single.second(block.float())
    resolved = not bool((worst > RESOLVED * double.moments().std).any())
    return (torch.float32, single.moments()) if resolved else (torch.float64, double.moments())


def _doubles(block: np.ndarray) -> Tensor:
    """Samples `(n, C, ...)` as float64, `(n, C, m)`."""
    return torch.from_numpy(block.astype(np.float64, copy=False)).reshape(len(block), block.shape[1], -1)


def _raw_blocks(values: np.ndarray | FileArray) -> Iterator[np.ndarray]:
    """All values as they are stored, some samples at a time."""
    size = max(1, BLOCK * len(values) // max(1, values.size))
    places = (slice(start, start + size) for start in range(0, len(values), size))
    if isinstance(values, FileArray):
        return ahead(values.raw(place) for place in places)
    return (values[place] for place in places)

"""Data in memory, and the map from raw values to the model's units and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

BLOCK = 2**20  # entries that are converted at a time
MAX_CLASSES = 2**16  # a network keeps a vector for each


@final
@dataclass(frozen=True)
class Scaling:
    """model value = (raw value - center) / scale: numbers, or one of each for every column of vectors."""

    center: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def to_model(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw values to the model's units."""
        raw = raw.to(dtype)
        return (raw - _factor(self.center, raw)) / _factor(self.scale, raw)

    def change_to_model(self, change: Tensor) -> Tensor:
        """A change of raw values in the model's units."""
        return change / _factor(self.scale, change)

    def to_raw(self, x: Tensor) -> Tensor:
        """The model's units to raw values."""
        return x * _factor(self.scale, x) + _factor(self.center, x)


def _factor(value: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    return like.new_tensor(value) if isinstance(value, tuple) else value


@final
@dataclass(frozen=True)
class ArrayData:
    """Samples `(N, *shape)` in raw units, with labels `(N,)` or None, and the names of the classes where known.

    Of a part of a data set, `index` `(N,)` says which of its samples these are.

    Raises:
        UsageError: for no samples, values that are not finite, or labels that do not fit.
    """

    values: Tensor
    labels: Tensor | None = None
    scaling: Scaling = Scaling()
    class_names: tuple[str, ...] = ()
    index: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.values.ndim >= 2 and self.values.numel() > 0,
            f"data of shape {tuple(self.values.shape)}: need (samples, ...), with at least one sample and one number "
            "in each; a row of numbers is x[:, None]",
        )
        if self.values.is_floating_point():
            bad = int((~self.values.isfinite()).flatten(1).any(1).sum())
            require(bad == 0, f"data: {bad} of {len(self.values)} samples hold NaN or infinity; remove or repair them")
        if self.labels is not None:
            require(
                self.labels.shape == self.values.shape[:1] and not self.labels.is_floating_point(),
                f"labels of shape {tuple(self.labels.shape)} and type {self.labels.dtype}: "
                f"need {len(self.values)} integers, one a sample",
            )
            least, largest = int(self.labels.min()), int(self.labels.max())
            require(least >= 0, f"labels: the least is {least}; count from 0")
            limit = len(self.class_names) or MAX_CLASSES
            require(largest < limit, f"labels: the largest is {largest}; need class numbers below {limit}")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.values.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return 0 if self.labels is None else len(self.class_names) or int(self.labels.max()) + 1

    def batch(self, index: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """Samples in the model's units, and their labels."""
        return self.scaling.to_model(self.values[index], dtype), None if self.labels is None else self.labels[index]

    def all(self) -> tuple[Tensor, Tensor | None]:
        """Everything, as `batch` gives it."""
        return self.scaling.to_model(self.values), self.labels

    def std(self) -> float:
        """Standard deviation over all entries, in the model's units."""
        mean = squares = 0.0
        count = 0
        for block in self.values.split(max(1, BLOCK // math.prod(self.shape))):  # a float copy of all would be large
            scaled = self.scaling.to_model(block, torch.float64)
            variance, block_mean = (moment.item() for moment in torch.var_mean(scaled, correction=0))
            shift, total = block_mean - mean, count + block.numel()
            squares += block.numel() * (variance + shift**2 * count / total)  # Chan, Golub and LeVeque 1979, eq. 2.1
            mean += shift * block.numel() / total
            count = total
        return math.sqrt(squares / max(count - 1, 1))

    def to(self, device: torch.device | str) -> ArrayData:
        """The same data on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, values=self.values.to(device), labels=labels)

    def split(self, held_out: float) -> tuple[ArrayData, ArrayData | None]:
        """Training and held-out samples: the last `held_out` share of a fixed shuffle, None where that is no sample."""
        require(0 <= held_out < 1, f"data.held_out={held_out}: need 0 <= held_out < 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        num_held_out = min(round(held_out * len(self)), len(self) - 1)
        train, held = order[: len(self) - num_held_out], order[len(self) - num_held_out :]
        return self._select(train), self._select(held) if num_held_out else None

    def _select(self, index: Tensor) -> ArrayData:
        labels = None if self.labels is None else self.labels[index]
        return replace(self, values=self.values[index], labels=labels, index=index)

"""Data in memory, or in a file of which each batch is read."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from scoresde import condition
from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.data.file_array import FileArray, ahead
from scoresde.data.survey import Survey, Surveyor
from scoresde.errors import require

BLOCK = 2**20  # entries converted at a time
MAX_CLASSES = 2**16  # a network has an embedding for each


@final
@dataclass(frozen=True)
class ArrayData:
    """Samples `(N, *shape)` in raw units, their conditions, and the codec of their units.

    Attributes:
        values: the samples; those in a file are known to be finite.
        cond: their conditions, such as class labels `(N,)`, or None.
        codec: the map from raw values to the model's units and back.
        class_names: names of the classes, if they are known.
        index: for a part of a data set, the places of its samples in the whole, `(N,)`.
        texts: the different captions of the data set. `cond["text"]`, `(N,)`, holds the number of each sample's.
        table: the encoded captions, one entry a text, which `conditions` puts in the place of the numbers.

    Raises:
        UsageError: for no samples, values that are not finite, or conditions that do not fit.
    """

    values: Tensor | FileArray
    cond: Condition = None
    codec: Codec = Scaling()  # noqa: RUF009  frozen
    class_names: tuple[str, ...] = ()
    index: Tensor | None = None
    texts: tuple[str, ...] = ()
    table: Condition = None

    def __post_init__(self) -> None:
        check_shape(tuple(self.values.shape))
        if isinstance(self.values, Tensor):
            check_finite(self.values)
        condition.check_count(self.cond, len(self.values))
        labels = self.labels
        if labels is not None:
            smallest, largest = (int(end) for end in labels.aminmax())
            require(smallest >= 0, f"labels: the smallest is {smallest}; count from 0")
            limit = len(self.class_names) or MAX_CLASSES
            require(largest < limit, f"labels: the largest is {largest}; need class numbers below {limit}")
        if self.texts:
            check_texts(self.cond, len(self.texts))

    @property
    def labels(self) -> Tensor | None:
        """The conditions, or their part "label", if they are class labels, one whole number a sample; else None."""
        cond = self.cond.get("label") if isinstance(self.cond, Mapping) else self.cond
        is_labels = isinstance(cond, Tensor) and cond.ndim == 1 and not cond.is_floating_point()
        return cond if is_labels and isinstance(cond, Tensor) else None

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

    def batch(self, index: Tensor | slice, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Condition]:
        """Samples in the model's units, and their conditions."""
        return self.codec.encode(self.values[index], dtype), self.conditions(index)

    def conditions(self, index: Tensor | slice) -> Condition:
        """The conditions of samples, as a model takes them: with encoded captions in place of their numbers."""
        cond = condition.take(self.cond, index)
        if not isinstance(self.table, Mapping) or not isinstance(cond, Mapping):
            return cond
        numbers = cond["text"]
        assert isinstance(numbers, Tensor)
        encoded = condition.take(self.table, numbers)
        assert isinstance(encoded, Mapping)
        return {name: part for name, part in cond.items() if name != "text"} | dict(encoded)

    def all(self) -> tuple[Tensor, Condition]:
        """Everything, as `batch` gives it.

        Raises:
            UsageError: for data in a file.
        """
        require(
            isinstance(self.values, Tensor),
            "data.from_disk=True: all samples are needed in memory here; set it to False, and data.max_gigabytes",
        )
        return self.batch(slice(None))

    def blocks(self) -> Iterator[Tensor]:
        """All raw values, some samples at a time, in the order of the whole data set: a file is read front to back."""
        found = (self.values[place] for place, _ in self._places())
        return found if isinstance(self.values, Tensor) else ahead(found)

    def _places(self) -> Iterator[tuple[Tensor | slice, int]]:
        """The samples of each block, and the place of its first one in the whole data set."""
        size = max(1, BLOCK // math.prod(self.shape))
        if self.index is None:
            return ((slice(start, start + size), start) for start in range(0, len(self), size))
        index = self.index
        return ((part, int(index[part[0]])) for part in index.argsort().split(size))

    @cached_property
    def survey(self) -> Survey:
        """The ends, the root mean square and the checksum of the samples; they are read when it is first asked for."""
        return read_together([self])[0]

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest raw value."""
        found = [block.aminmax() for block in self.blocks()]
        return min(low.item() for low, _ in found), max(high.item() for _, high in found)

    def std(self) -> float:
        """Standard deviation over all entries, in the model's units."""
        mean = squares = 0.0
        count = 0
        for block in self.blocks():  # a float copy of all would be large
            scaled = self.codec.encode(block, torch.float64)
            variance, block_mean = (moment.item() for moment in torch.var_mean(scaled, correction=0))
            shift = block_mean - mean
            total = count + block.numel()
            squares += block.numel() * (variance + shift**2 * count / total)  # Chan, Golub and LeVeque 1979, eq. 2.1
            mean += shift * block.numel() / total
            count = total
        return math.sqrt(squares / max(count - 1, 1))

    def rms(self) -> float:
        """Root mean square over all entries, in the model's units: what a parametrisation takes for `sigma_data`."""
        if self.survey.rms is not None:
            return self.survey.rms
        total = 0.0
        for block in self.blocks():
            total += self.codec.encode(block, torch.float64).square().sum().item()
        return math.sqrt(total / self.values.numel())

    def to(self, device: torch.device | str) -> ArrayData:
        """The same data on a device; samples in a file stay there."""
        values = self.values.to(device) if isinstance(self.values, Tensor) else self.values
        return replace(
            self, values=values, cond=condition.to(self.cond, device), table=condition.to(self.table, device)
        )

    def split(self, held_out: float) -> tuple[ArrayData, ArrayData | None]:
        """Training and held-out samples. The latter are the last `held_out` share of a fixed shuffle; None if empty.

        A class of which all samples would be held out has its first one trained on, because it must be learned.
        """
        require(0 <= held_out < 1, f"data.held_out={held_out}: need 0 <= held_out < 1")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        num_held_out = min(round(held_out * len(self)), len(self) - 1)
        train = order[: len(self) - num_held_out]
        held = order[len(self) - num_held_out :]
        labels = self.labels
        if labels is not None:
            unseen = set(labels.unique().tolist()) - set(labels[train].unique().tolist())
            moved = [int((labels[held] == label).nonzero()[0]) for label in sorted(unseen)]
            train = torch.cat([train, held[moved]])
            kept = torch.ones(len(held), dtype=torch.bool)
            kept[moved] = False
            held = held[kept]
        return self.select(train), self.select(held) if len(held) else None

    def select(self, index: Tensor) -> ArrayData:
        """Some of the samples."""
        own = index if self.index is None else self.index[index]
        values = self.values[index] if isinstance(self.values, Tensor) else self.values.part(index)
        return replace(self, values=values, cond=condition.take(self.cond, index), index=own)


def read_together(parts: Sequence[ArrayData]) -> list[Survey]:
    """The surveys of parts of a data set, for which their file is read once, front to back."""
    surveyors = [Surveyor(tuple(p.values.shape), p.values.dtype, p.codec, p.cond, p.index, p.texts) for p in parts]

    def blocks(number: int) -> Iterator[tuple[int, int, Tensor | slice]]:
        return ((first, number, place) for place, first in parts[number]._places())

    in_order = heapq.merge(*map(blocks, range(len(parts))), key=lambda block: block[:2])
    for number, block in ahead((number, parts[number].values[place]) for _, number, place in in_order):
        surveyors[number].add(block)
    return [surveyor.finish() for surveyor in surveyors]


def survey_together(*parts: ArrayData) -> None:
    """Finds the surveys of parts of a data set in one pass, if they are not known yet."""
    unknown = [part for part in parts if "survey" not in vars(part)]
    for part, survey in zip(unknown, read_together(unknown), strict=True):
        vars(part)["survey"] = survey  # as `cached_property` keeps it


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises `UsageError` unless an array of a shape holds samples."""
    require(
        len(shape) >= 2 and math.prod(shape) > 0,
        f"data of shape {shape}: need (samples, ...), with at least one sample and one number in each; a row of "
        "numbers is x[:, None]",
    )


def check_texts(cond: Condition, num_texts: int) -> None:
    """Raises `UsageError` unless a condition holds the numbers of captions, of which there are `num_texts`."""
    numbers = cond.get("text") if isinstance(cond, Mapping) else None
    require(
        isinstance(numbers, Tensor) and numbers.ndim == 1 and numbers.dtype == torch.long,
        f"texts: {num_texts} captions with {condition.describe(cond)}; need cond={{'text': (N,) long}}, their numbers",
    )
    assert isinstance(numbers, Tensor)
    low, high = (int(end) for end in numbers.aminmax())
    require(
        low >= 0 and high < num_texts,
        f"cond['text']: numbers from {low} to {high}; need those of {num_texts} captions, 0 to {num_texts - 1}",
    )


def check_finite(values: Tensor | FileArray) -> None:
    """Raises `UsageError` if samples hold NaN or infinity."""
    if values.is_floating_point():
        blocks = values.split(max(1, BLOCK * len(values) // values.numel()))
        bad = sum(int((~block.isfinite()).flatten(1).any(1).sum()) for block in blocks)
        require(bad == 0, f"data: {bad} of {len(values)} samples hold NaN or infinity; remove or repair them")

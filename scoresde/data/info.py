"""A checkpoint's description of the data on which a model was trained."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from scoresde import checkpoint, condition
from scoresde.data.arrays import ArrayData, survey_together
from scoresde.errors import UsageError, require, unknown_name

SAMPLES = 2**10  # at a time


@final
@dataclass(frozen=True)
class DataInfo:
    """A data set in a few numbers.

    Attributes:
        low, high: the smallest and the largest raw value.
        num_classes: 0 for data without classes.
        class_names: names of the classes, if they are known.
        quantized: whether the raw values are whole numbers.
        digest: the `fingerprint` of the samples that are trained on; empty if it is not known.
        held_out_digest: that of the samples that are held out; empty if there are none, or it is not known.
    """

    low: float
    high: float
    num_classes: int
    class_names: tuple[str, ...] = ()
    quantized: bool = False
    digest: str = ""
    held_out_digest: str = ""

    @classmethod
    def of(cls, train: ArrayData, held_out: ArrayData | None = None) -> DataInfo:
        """The description of a data set; its range is that of both parts.

        Bytes that reach the upper half are pixels, of the range 0 to 255.
        """
        parts = [train] if held_out is None else [train, held_out]
        survey_together(*parts)
        surveys = [part.survey for part in parts]
        low, high = min(survey.low for survey in surveys), max(survey.high for survey in surveys)
        if train.values.dtype == torch.uint8 and high > 127:
            low, high = 0, 255
        quantized = not train.values.is_floating_point()
        return cls(low, high, train.num_classes, train.class_names, quantized, *(s.digest for s in surveys))

    def class_number(self, name: str) -> int:
        """The number of a class, by its name or, unless names are numbers, by its number.

        Raises:
            UsageError: for neither.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        if not any(known.isdigit() for known in self.class_names):
            with contextlib.suppress(ValueError):
                return int(name)
        if self.class_names:
            raise unknown_name("class", name, self.class_names)
        raise UsageError(f"class {name!r}: need a whole number below {self.num_classes}")

    def to_unit(self, raw: Tensor) -> Tensor:
        """Raw values from `low` to `high` as values from 0 to 1; all 0 for data of one value."""
        return (raw - self.low) / (self.high - self.low or 1.0)

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return dataclasses.asdict(self) | {"class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], source: str) -> DataInfo:
        """Reads what `to_json` gave.

        Raises:
            UsageError: for a field that is missing or of the wrong kind; the message begins with `source`.
        """
        checks = {
            "low": lambda v: _is_number(v),
            "high": lambda v: _is_number(v),
            "num_classes": lambda v: type(v) is int and 0 <= v < 2**31,
            "class_names": lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v),
            "quantized": lambda v: isinstance(v, bool),
            "digest": lambda v: isinstance(v, str),
            "held_out_digest": lambda v: isinstance(v, str),
        }
        found = {"held_out_digest": "", **found}  # earlier versions did not write it
        for name, check in checks.items():
            require(check(found.get(name)), f"{source}: data.{name}={found.get(name)!r} in its header is damaged")
        require(found["low"] <= found["high"], f"{source}: data.low={found['low']!r} in its header is damaged")
        return cls(**{name: found[name] for name in checks} | {"class_names": tuple(found["class_names"])})


def fingerprint(data: ArrayData) -> str:
    """A checksum of values and conditions: data that moved are the same, data in another order are not."""
    return data.survey.digest


def has_fingerprint(data: ArrayData, known: str) -> bool:
    """Whether data have a fingerprint, by the present definition or by that of earlier versions.

    Those took the samples of a part in the order of the split, in which a file on a disk cannot be read fast.
    """
    return known == fingerprint(data) or known == _earlier_fingerprint(data)


def _earlier_fingerprint(data: ArrayData) -> str:
    found = checkpoint.Checksum()
    found.take(dict(condition.parts(data.cond)))
    found.begin("values", tuple(data.values.shape), data.values.dtype)
    for block in data.values.split(SAMPLES):
        found.add(block)
    return found.end()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max

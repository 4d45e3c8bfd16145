"""Raw data to the model's units and back.

A model learns the distribution of x = encode(raw), and decode(x) turns its samples into data. The codec is a part of
the model. A codec with weights is a `torch.nn.Module` as well; its weights are then trained, averaged and saved with
those of the network.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

WIDE = (torch.float64, torch.int32, torch.int64)  # types of raw data that float32 may not resolve
RESOLVED = 1e-6  # of a deviation: what rounding may move a value
FAR = 8.0  # scales from 0 to the center up to which float32 holds 1e-6 of a scale


class Codec(ABC):
    """A map from raw data to the model's units, and its inverse."""

    @abstractmethod
    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Raw data `(B, *raw_shape)` in the model's units, `(B, *shape)`, in a floating-point type."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """The raw data `(B, *raw_shape)` of samples `(B, *shape)`."""

    @abstractmethod
    def encoded_shape(self, raw_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an encoded sample.

        Raises:
            UsageError: for a shape that the codec does not accept.
        """


@final
@dataclass(frozen=True)
class Scaling(Codec):
    """x = (raw - center) / scale.

    Attributes:
        center, scale: numbers, or one number for each column of vectors or channel of images, series and volumes.
    """

    center: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("center", "scale"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            require(
                len(numbers) > 0 and all(isinstance(v, int | float) and math.isfinite(v) for v in numbers),
                f"{name}={value!r} of Scaling: need a finite number, or one for each column or channel",
            )
            require(name != "scale" or 0 not in numbers, f"scale={value!r} of Scaling: must not be 0")

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        raw = raw.to(torch.float64 if raw.dtype in WIDE else dtype)
        return ((raw - _factor(self.center, raw)) / _factor(self.scale, raw)).to(dtype)

    def encode_change(self, change: Tensor) -> Tensor:
        """A difference of raw values in the model's units: change / scale."""
        return change / _factor(self.scale, change)

    def log_volume(self, shape: tuple[int, ...]) -> float:
        """Log of the raw volume of a unit cell of samples of this shape: log p(raw) = log p(x) - log_volume."""
        unit = torch.ones(1, *shape, dtype=torch.float64)
        return (unit * _factor(self.scale, unit)).abs().log().sum().item()

    def decode(self, x: Tensor) -> Tensor:
        """The raw data; in float64 if their center is too far from 0 for the type of x to resolve their scale."""
        if self._far:
            x = x.double()
        return x * _factor(self.scale, x) + _factor(self.center, x)

    def encoded_shape(self, raw_shape: tuple[int, ...]) -> tuple[int, ...]:
        for name in ("center", "scale"):
            value = getattr(self, name)
            require(
                not isinstance(value, tuple) or raw_shape[:1] == (len(value),),
                f"{name} of Scaling: has {len(value) if isinstance(value, tuple) else 1} numbers, but data of shape "
                f"{raw_shape} has another number of columns or channels",
            )
        return raw_shape

    @property
    def _far(self) -> bool:
        centers, scales = ((v if isinstance(v, tuple) else (v,)) for v in (self.center, self.scale))
        return max(map(abs, centers)) > FAR * min(map(abs, scales))


def _factor(value: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    """A number, or those of the columns in a shape that broadcasts over samples `(B, C, ...)`."""
    return like.new_tensor(value).view(-1, *[1] * (like.ndim - 2)) if isinstance(value, tuple) else value


def same_scaling(one: Codec, other: Codec) -> bool:
    """Whether two codecs are equal, scalings but for rounding, which differs between machines."""
    if not (isinstance(one, Scaling) and isinstance(other, Scaling)):
        return one == other
    centers, scales = (
        [torch.tensor(codec_part, dtype=torch.float64) for codec_part in parts]
        for parts in ((one.center, other.center), (one.scale, other.scale))
    )
    return centers[0].shape == centers[1].shape and all(
        bool(((a - b).abs() <= RESOLVED * scales[0].abs()).all()) for a, b in (centers, scales)
    )

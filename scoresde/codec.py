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
        center, scale: numbers, or one number for each column of vectors.
    """

    center: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("center", "scale"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            require(
                len(numbers) > 0 and all(isinstance(v, int | float) and math.isfinite(v) for v in numbers),
                f"{name}={value!r} of Scaling: need a finite number, or one for each column",
            )
            require(name != "scale" or 0 not in numbers, f"scale={value!r} of Scaling: must not be 0")

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        raw = raw.to(dtype)
        return (raw - _factor(self.center, raw)) / _factor(self.scale, raw)

    def encode_change(self, change: Tensor) -> Tensor:
        """A difference of raw values in the model's units: change / scale."""
        return change / _factor(self.scale, change)

    def decode(self, x: Tensor) -> Tensor:
        return x * _factor(self.scale, x) + _factor(self.center, x)

    def encoded_shape(self, raw_shape: tuple[int, ...]) -> tuple[int, ...]:
        for name in ("center", "scale"):
            value = getattr(self, name)
            require(
                not isinstance(value, tuple) or raw_shape[-1:] == (len(value),),
                f"{name} of Scaling: has {len(value) if isinstance(value, tuple) else 1} numbers, but data of shape "
                f"{raw_shape} has another number of columns",
            )
        return raw_shape


def _factor(value: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    return like.new_tensor(value) if isinstance(value, tuple) else value

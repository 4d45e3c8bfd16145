r"""The noise of a measurement, y given A x.

Methods treat every noise as Gaussian, of the variance that y itself shows: for counts, that is the variance of a rate
equal to the count. It is the likelihood to second order about its maximum, good for counts of ten or more.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

SMALLEST_RATE = 1e-6  # expected counts, so that a count where none was expected is not impossible


class MeasurementNoise(ABC):
    """The distribution of y given A x, entry by entry."""

    @abstractmethod
    def add(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A measurement y of A x."""

    @abstractmethod
    def variance(self, y: Tensor) -> Tensor | float:
        """The variance of y, as y itself shows it."""

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | A x) up to a constant, `(B,)`, for `clean` `(B, *measured_shape)`; y broadcasts to it."""


@final
@dataclass(frozen=True)
class GaussianNoise(MeasurementNoise):
    """y = A x + std eps.

    Attributes:
        std: in the units of the measurement; 0 for none.
    """

    std: float

    def __post_init__(self) -> None:
        require(0 <= self.std < math.inf, f"std={self.std}: need a finite number of 0 or more")

    def add(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        eps = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        return clean + self.std * eps

    def variance(self, y: Tensor) -> float:
        return self.std**2

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        require(self.std > 0, "noise=0: gives no density; need a positive deviation")
        return -0.5 * ((y - clean) / self.std).square().flatten(1).sum(1)


@final
@dataclass(frozen=True)
class PoissonNoise(MeasurementNoise):
    """y = n / gain - offset, n ~ Poisson(gain (A x + offset)): counted photons.

    Attributes:
        gain: counts for a unit of the measurement.
        offset: what is added so that no rate is negative: 1 for images in [-1, 1].
    """

    gain: float
    offset: float = 1.0

    def __post_init__(self) -> None:
        require(self.gain > 0 and math.isfinite(self.gain), f"gain={self.gain}: must be positive")

    def add(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        rate = self.gain * (clean + self.offset)
        return torch.poisson(rate.clamp(min=0), generator=generator) / self.gain - self.offset

    def variance(self, y: Tensor) -> Tensor:
        count = (self.gain * (y + self.offset)).clamp(min=1.0)
        return count / self.gain**2

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        count = self.gain * (y + self.offset)
        rate = (self.gain * (clean + self.offset)).clamp(min=SMALLEST_RATE)
        return (count * rate.log() - rate).flatten(1).sum(1)


def as_noise(noise: MeasurementNoise | float) -> MeasurementNoise:
    """Noise, from itself or from the deviation of Gaussian noise."""
    return noise if isinstance(noise, MeasurementNoise) else GaussianNoise(noise)

r"""What a network emits, and how a denoiser is made of it.

A network F sees a rescaled input and a label of the noise, and its output is mixed with x_t into a denoiser,

    D(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise),

which covers every habit of the field: predicting the noise, the clean data, the score, the velocity of Salimans and
Ho, or Karras et al.'s mixture of them. Training regresses F on the value that makes D = x_0, which each class states
directly (as a combination of x_0 and eps, so that nothing cancels at small noise).

The input scale and the noise label are the same for all: c_in brings x_t to unit variance, and
c_noise = log(sigma / alpha) / 4 (Karras et al. 2022, table 1) depends on the signal-to-noise ratio alone. So a network
means the same thing under every SDE.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.sde import Level


class Parametrization(ABC):
    """How D is made of F. All methods take a `Level` whose parts broadcast against x.

    Attributes:
        sigma_data: standard deviation of the data over all entries, in the model's units.
    """

    sigma_data: float

    @abstractmethod
    def c_skip(self, level: Level) -> Tensor:
        """Factor of x_t in D."""

    @abstractmethod
    def c_out(self, level: Level) -> Tensor:
        """Factor of F in D."""

    @abstractmethod
    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        """The value of F at which D = x_0, for x_t = alpha x_0 + sigma eps."""

    @final
    def c_in(self, level: Level) -> Tensor:
        """1 / std(x_t)."""
        return torch.rsqrt((level.alpha * self.sigma_data) ** 2 + level.sigma**2)

    @final
    def c_noise(self, level: Level) -> Tensor:
        """log(sigma / alpha) / 4."""
        return -0.125 * level.log_snr

    @final
    def _check(self) -> None:
        object.__setattr__(self, "sigma_data", float(self.sigma_data))  # x.std() is a tensor
        require(self.sigma_data > 0, f"sigma_data={self.sigma_data}: must be positive; use the data's own deviation")


@final
@dataclass(frozen=True)
class NoiseParametrization(Parametrization):
    """F estimates eps: D = (x_t - sigma F) / alpha (Ho et al. 2020, equation 15)."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        self._check()

    def c_skip(self, level: Level) -> Tensor:
        return 1 / level.alpha

    def c_out(self, level: Level) -> Tensor:
        return -level.sigma / level.alpha

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return eps


@final
@dataclass(frozen=True)
class DenoisedParametrization(Parametrization):
    """F estimates x_0: D = F."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        self._check()

    def c_skip(self, level: Level) -> Tensor:
        return torch.zeros_like(level.alpha)

    def c_out(self, level: Level) -> Tensor:
        return torch.ones_like(level.alpha)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return x_0


@final
@dataclass(frozen=True)
class ScoreParametrization(Parametrization):
    """F estimates the score itself: D = (x_t + sigma^2 F) / alpha (Tweedie's formula)."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        self._check()

    def c_skip(self, level: Level) -> Tensor:
        return 1 / level.alpha

    def c_out(self, level: Level) -> Tensor:
        return level.sigma**2 / level.alpha

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return -eps / level.sigma


@final
@dataclass(frozen=True)
class VelocityParametrization(Parametrization):
    """F estimates v = alpha eps - sigma x_0 (Salimans and Ho 2022): D = (alpha x_t - sigma F) / (alpha^2 + sigma^2)."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        self._check()

    def c_skip(self, level: Level) -> Tensor:
        return level.alpha / (level.alpha**2 + level.sigma**2)

    def c_out(self, level: Level) -> Tensor:
        return -level.sigma / (level.alpha**2 + level.sigma**2)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return level.alpha * eps - level.sigma * x_0


@final
@dataclass(frozen=True)
class EDMParametrization(Parametrization):
    """Karras et al. 2022, table 1, for any alpha: unit variance of F's input and target at every noise level.

    In u = x_t / alpha with r = sigma / alpha: D = sd^2/(r^2 + sd^2) u + r sd / sqrt(r^2 + sd^2) F.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        self._check()

    def c_skip(self, level: Level) -> Tensor:
        return self.sigma_data**2 / (level.noise_level**2 + self.sigma_data**2) / level.alpha

    def c_out(self, level: Level) -> Tensor:
        r = level.noise_level
        return r * self.sigma_data * torch.rsqrt(r**2 + self.sigma_data**2)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        r = level.noise_level
        return (r / self.sigma_data * x_0 - self.sigma_data * eps) * torch.rsqrt(r**2 + self.sigma_data**2)

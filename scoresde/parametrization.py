r"""A network's input and output, and the denoiser made from them.

A network F is given a rescaled input and a label of the noise. Its output is mixed with x_t into a denoiser,

    D(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise).

`Parametrization` is the output side, c_skip and c_out. It covers the usual choices: predicting the noise, the clean
data, the score, the velocity of Salimans and Ho, that of rectified flow, or Karras et al.'s mixture of them. Training
regresses F on the value that makes D = x_0. Each class states it directly as a combination of x_0 and eps, so that
nothing cancels at small noise.

`Input` is the input side, c_in and c_noise. With the default, `UnitVarianceInput`, c_in x_t and c_noise depend on the
signal-to-noise ratio alone, so a network means the same under every SDE. The other inputs are those of published
networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.sde import Level


class Input(ABC):
    """A network's view of x_t and of the noise. All methods take a `Level` whose parts broadcast against x."""

    @abstractmethod
    def c_in(self, level: Level, sigma_data: float) -> Tensor:
        """Factor of x_t in the network's input."""

    @abstractmethod
    def c_noise(self, level: Level) -> Tensor:
        """Label of the noise."""


@final
@dataclass(frozen=True)
class UnitVarianceInput(Input):
    """c_in = 1 / std(x_t), c_noise = log(sigma / alpha) / 4 (Karras et al. 2022, table 1, for any alpha)."""

    def c_in(self, level: Level, sigma_data: float) -> Tensor:
        return torch.rsqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)

    def c_noise(self, level: Level) -> Tensor:
        return -0.125 * level.log_snr


@final
@dataclass(frozen=True)
class TimeInput(Input):
    """c_in = 1, c_noise = scale t + offset.

    Song et al. 2021's VP networks take scale 999. On a DDPM chain of N levels, whose level i is the time i / N, the
    index 0 .. N - 1 of published networks is N t - 1: scale N, offset -1.
    """

    scale: float = 999.0
    offset: float = 0.0

    def c_in(self, level: Level, sigma_data: float) -> Tensor:
        return torch.ones_like(level.t)

    def c_noise(self, level: Level) -> Tensor:
        return self.scale * level.t + self.offset


@final
@dataclass(frozen=True)
class LogSigmaInput(Input):
    """c_in = 1, c_noise = log(sigma / unit): Song et al. 2021's VE networks.

    Theirs measure sigma in units of images in [0, 1]. If the model's images are in [-1, 1], the unit is 2.
    """

    unit: float = 1.0

    def __post_init__(self) -> None:
        require(self.unit > 0, f"unit={self.unit} of LogSigmaInput: must be positive")

    def c_in(self, level: Level, sigma_data: float) -> Tensor:
        return torch.ones_like(level.sigma)

    def c_noise(self, level: Level) -> Tensor:
        return torch.log(level.sigma / self.unit)


@dataclass(frozen=True)
class Parametrization(ABC):
    """The map from F to D. All methods take a `Level` whose parts broadcast against x.

    Attributes:
        sigma_data: standard deviation of the data over all entries, in the model's units.
        input: the input of F.
    """

    sigma_data: float = 1.0
    input: Input = UnitVarianceInput()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma_data", float(self.sigma_data))  # x.std() is a tensor
        require(self.sigma_data > 0, f"sigma_data={self.sigma_data}: must be positive; use the std of the data")

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
        """Factor of x_t in F's input."""
        return self.input.c_in(level, self.sigma_data)

    @final
    def c_noise(self, level: Level) -> Tensor:
        """Label of the noise in F's input."""
        return self.input.c_noise(level)


@final
@dataclass(frozen=True)
class NoiseParametrization(Parametrization):
    """F estimates eps: D = (x_t - sigma F) / alpha (Ho et al. 2020, equation 15)."""

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

    def c_skip(self, level: Level) -> Tensor:
        return level.alpha / (level.alpha**2 + level.sigma**2)

    def c_out(self, level: Level) -> Tensor:
        return -level.sigma / (level.alpha**2 + level.sigma**2)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return level.alpha * eps - level.sigma * x_0


@final
@dataclass(frozen=True)
class FlowParametrization(Parametrization):
    """F estimates eps - x_0, rectified flow's velocity (Liu et al. 2023): D = (x_t - sigma F) / (alpha + sigma)."""

    def c_skip(self, level: Level) -> Tensor:
        return 1 / (level.alpha + level.sigma)

    def c_out(self, level: Level) -> Tensor:
        return -level.sigma / (level.alpha + level.sigma)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        return eps - x_0


@final
@dataclass(frozen=True)
class EDMParametrization(Parametrization):
    """Karras et al. 2022, table 1, for any alpha: F's target has unit variance at every noise level.

    In u = x_t / alpha with r = sigma / alpha and s = sigma_data: D = s^2/(r^2 + s^2) u + r s / sqrt(r^2 + s^2) F.
    """

    sigma_data: float = 0.5  # Karras et al. 2022, table 1, for images in [-1, 1]

    def c_skip(self, level: Level) -> Tensor:
        return self.sigma_data**2 / (level.noise_level**2 + self.sigma_data**2) / level.alpha

    def c_out(self, level: Level) -> Tensor:
        r = level.noise_level
        return r * self.sigma_data * torch.rsqrt(r**2 + self.sigma_data**2)

    def target(self, level: Level, x_0: Tensor, eps: Tensor) -> Tensor:
        r = level.noise_level
        return (r / self.sigma_data * x_0 - self.sigma_data * eps) * torch.rsqrt(r**2 + self.sigma_data**2)

r"""Integrands: the scale in which a step of a solver is a sum.

The probability flow and the reverse SDE move x by a multiple of itself and a multiple of D, its estimate of the data.
In the right scale the first part vanishes. With the noise level r = sigma / alpha, x = scale(r) y and a measure m(r),

    dy = h dm (+ dB, a Brownian motion whose time is the clock),        h = p D + q x.

With s = sigma_data, and the angle atan(r / s) of cos and sin in the third row,

    integrand   scale                     measure m        h                              clock
    noise       alpha                     r                eps_hat                        none
    denoised    alpha r                   1 / r            D                              none
    velocity    alpha sqrt(1 + r^2/s^2)   atan(r / s)      (cos^2 x/alpha - D) / sin      none
    reverse     alpha r^(1+k)             r^-(1+k)         D                              r^(-2k)

noise: the probability flow du/dr = (u - D)/r of u = x/alpha (Song, Meng and Ermon 2021, equation 14).
denoised: the same for u/r.
velocity: the same for u / sqrt(r^2 + s^2). h = -s F with F the output of Karras et al.'s network. With s = 1, on a
    variance-preserving path, it is the velocity v of Salimans and Ho 2022. D, h and x stay bounded at both ends of the
    noise range.
reverse: with k = 1 the reverse SDE. In the clock r^-2, the signal-to-noise ratio, it is dy = D dm + dB with unit noise.
    For 0 < k < 1 it is the family of SDE-DPM-Solver++ (Lu et al. 2022b; k is the square of the eta of
    `samplers.euler_maruyama`), and k = 0 is the second row.

So a deterministic solver is a quadrature of h over m (`samplers.quadrature`), whatever the SDE. Runge-Kutta and
multistep methods differ in where they evaluate h; DPM-Solver, DEIS, UniPC and Heun differ in the integrand, and in the
variable in which h is approximated by a polynomial.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from samplers.table import Table, interleave
from scoresde._stable import sqrt_one_minus_exp
from scoresde.errors import require, unknown_name
from scoresde.sde import Level

IntegrandName = Literal["noise", "denoised", "velocity"]


class Integrand(ABC):
    """x = scale y and dy = h dm, h = p D + q x; all functions of a level, element by element."""

    @abstractmethod
    def scale(self, level: Level) -> Tensor:
        """x / y."""

    @abstractmethod
    def measure(self, noise_level: Tensor) -> Tensor:
        """m at a noise level r."""

    @abstractmethod
    def noise_level(self, measure: Tensor) -> Tensor:
        """r at m."""

    @abstractmethod
    def slope(self, noise_level: Tensor) -> Tensor:
        """dm / d(log r)."""

    @abstractmethod
    def factors(self, level: Level) -> tuple[Tensor, Tensor]:
        """(p, q) of h = p D + q x."""

    @abstractmethod
    def noise(self, start: Level, end: Level) -> Tensor:
        """Standard deviation, in x, of the noise that a step to `end` adds."""


@final
@dataclass(frozen=True)
class NoiseIntegrand(Integrand):
    """h = eps_hat over r."""

    def scale(self, level: Level) -> Tensor:
        return level.alpha

    def measure(self, noise_level: Tensor) -> Tensor:
        return noise_level

    def noise_level(self, measure: Tensor) -> Tensor:
        return measure

    def slope(self, noise_level: Tensor) -> Tensor:
        return noise_level

    def factors(self, level: Level) -> tuple[Tensor, Tensor]:
        return -level.alpha / level.sigma, 1 / level.sigma

    def noise(self, start: Level, end: Level) -> Tensor:
        return torch.zeros_like(start.t)


@final
@dataclass(frozen=True)
class VelocityIntegrand(Integrand):
    """h = -sigma_data F over phi = atan(r / sigma_data), F the output of Karras et al.'s network."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.sigma_data < math.inf, f"sigma_data={self.sigma_data}: must be positive and finite")

    def scale(self, level: Level) -> Tensor:
        return torch.sqrt(level.alpha**2 + (level.sigma / self.sigma_data) ** 2)

    def measure(self, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level / self.sigma_data)

    def noise_level(self, measure: Tensor) -> Tensor:
        return self.sigma_data * torch.tan(measure)

    def slope(self, noise_level: Tensor) -> Tensor:
        ratio = noise_level / self.sigma_data
        return ratio / (1 + ratio**2)

    def factors(self, level: Level) -> tuple[Tensor, Tensor]:
        phi = self.measure(level.noise_level)
        return -1 / torch.sin(phi), torch.cos(phi) ** 2 / (level.alpha * torch.sin(phi))

    def noise(self, start: Level, end: Level) -> Tensor:
        return torch.zeros_like(start.t)


@final
@dataclass(frozen=True)
class ReverseIntegrand(Integrand):
    """h = D over r^-(1+k), with noise of the clock r^(-2k): the probability flow at k = 0, the reverse SDE at k = 1."""

    k: float = 0.0

    def scale(self, level: Level) -> Tensor:
        return level.alpha * level.noise_level ** (1 + self.k)

    def measure(self, noise_level: Tensor) -> Tensor:
        return noise_level ** -(1 + self.k)

    def noise_level(self, measure: Tensor) -> Tensor:
        return measure ** (-1 / (1 + self.k))

    def slope(self, noise_level: Tensor) -> Tensor:
        return -(1 + self.k) * self.measure(noise_level)

    def factors(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.t), torch.zeros_like(level.t)

    def noise(self, start: Level, end: Level) -> Tensor:
        return end.sigma * sqrt_one_minus_exp(self.k * (start.log_snr - end.log_snr))


def integrand_of(name: str, sigma_data: float = 1.0) -> Integrand:
    """The deterministic integrand of a name: noise, denoised or velocity."""
    integrands = {
        "noise": NoiseIntegrand(),
        "denoised": ReverseIntegrand(0.0),
        "velocity": VelocityIntegrand(sigma_data),
    }
    if name not in integrands:
        raise unknown_name("integrand", name, integrands)
    return integrands[name]


def to_clean(level: Level) -> Level:
    """The levels at which steps from some levels arrive: the next one, and clean data after the last."""
    return Level.join(torch.cat, [level[1:], Level.clean()])


def sum_table(
    integrand: Integrand, level: Level, arrival: Level, weights: Tensor, noise: Tensor | None = None
) -> Table:
    """Rows y_{k+1} = y_k + sum_j weights_kj h_{k-j}.

    Args:
        integrand: the scale in which they are sums.
        level, arrival: where rows evaluate, and where they arrive.
        weights: `(n, H)`, newest value first.
        noise: standard deviation in x of the noise added on arrival, or None.
    """
    scale = integrand.scale(arrival)
    p, q = integrand.factors(level)
    c = torch.zeros_like(level.t) if noise is None else noise
    return Table(level, arrival, scale / integrand.scale(level), scale[:, None] * weights, c, torch.zeros_like(c), p, q)


def stage_table(
    integrand: Integrand,
    levels: Sequence[Level],
    end: Level,
    totals: Sequence[Tensor],
    noise: Sequence[Tensor | None],
) -> Table:
    """Steps of several stages, each evaluated at a level of `levels`, the first of which is the step's start.

    Args:
        integrand: the scale in which the stages are sums.
        levels: where the stages evaluate, parts of shape `(n,)` each.
        end: where the steps arrive.
        totals: of each stage `(n, i + 1)`: y after stage i is y at the start + sum_j totals[i][:, j] h_j, j = 0 .. i.
        noise: of each stage, what is added on arrival, in x; it stays in y from then on.
    """
    stages = len(levels)
    arrivals = [*levels[1:], end]
    rows = []
    for i, total in enumerate(totals):
        change = total.clone()
        if i:
            change[:, :i] -= totals[i - 1]  # y already contains what the stage before added
        newest_first = torch.nn.functional.pad(change.flip(1), (0, stages - i - 1))
        rows.append(sum_table(integrand, levels[i], arrivals[i], newest_first, noise[i]))
    return interleave(rows)

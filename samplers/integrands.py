r"""Views: in which a step of a solver is a sum.

Every sampler of the eta-family moves x by a multiple of itself and a multiple of an estimate. In the right scale the
first part vanishes. With the noise level r = sigma / alpha, x = scale(r) y and a measure m(r),

    dy = h dm (+ dB over a clock),        h = p D + q x.

    integrand        scale                     measure m        h                              clock
    noise       alpha                     r                eps_hat                        none
    denoised    alpha r                   1 / r            D                              none
    velocity    alpha sqrt(1 + r^2/s^2)   atan(r / s)      (cos^2 x/alpha - D) / sin      none
    reverse     alpha r^(1+k)             r^-(1+k)         D                              r^(-2k)

The first is the probability flow du/dr = (u - D)/r of u = x/alpha (Song, Meng and Ermon 2021, equation 14), the second
the same for u/r, the third for u / sqrt(r^2 + s^2): the output F of Karras et al.'s network, up to its sign, with
sigma_data = s, and with s = 1 the velocity v of Salimans and Ho 2022. D, F and x are regular at both ends of the noise
range there.
The last is the reverse SDE, with k = 1; in the clock r^-2, the signal-to-noise ratio, it is dy = D dm + dB with unit
noise. For 0 < k < 1 it is the family of SDE-DPM-Solver++ (Lu et al. 2022b; k = eta^2 of `scoresde.reverse`), and k = 0
the second integrand.

So a deterministic solver is a quadrature of h over m (`samplers.quadrature`), whatever the SDE: Runge-Kutta and
multistep methods differ in where they know h, DPM-Solver, DEIS, UniPC and Heun in the integrand and in the variable in
which
h is taken for a polynomial.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers.table import Table
from scoresde._stable import sqrt_one_minus_exp
from scoresde.errors import require, unknown_name
from scoresde.sde import SDE, Level


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
    """h = -F over phi = atan(r / sd)."""

    sd: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.sd < math.inf, f"sd={self.sd}: must be positive and finite")

    def scale(self, level: Level) -> Tensor:
        return torch.sqrt(level.alpha**2 + (level.sigma / self.sd) ** 2)

    def measure(self, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level / self.sd)

    def noise_level(self, measure: Tensor) -> Tensor:
        return self.sd * torch.tan(measure)

    def slope(self, noise_level: Tensor) -> Tensor:
        ratio = noise_level / self.sd
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


def integrand_of(name: str, sd: float = 1.0) -> Integrand:
    """The deterministic integrand of a name: noise, denoised or velocity."""
    integrands = {"noise": NoiseIntegrand(), "denoised": ReverseIntegrand(0.0), "velocity": VelocityIntegrand(sd)}
    if name not in integrands:
        raise unknown_name("integrand", name, integrands)
    return integrands[name]


def level_at(sde: SDE, noise_level: Tensor) -> Level:
    """The level of an SDE at noise levels within its range."""
    return sde.level(sde.time(-2 * torch.log(noise_level)).clamp(sde.t_min, sde.t_max))


def sum_table(integrand: Integrand, level: Level, arrival: Level, weights: Tensor, c: Tensor | None = None) -> Table:
    """Rows y_{k+1} = y_k + sum_j weights_kj h_{k-j}, evaluated at `level`, arriving at `arrival`; `c` is noise in x."""
    scale = integrand.scale(arrival)
    p, q = integrand.factors(level)
    c = torch.zeros_like(level.t) if c is None else c
    return Table(level, scale / integrand.scale(level), scale[:, None] * weights, c, p, q)


def stage_table(
    integrand: Integrand, levels: list[Level], end: Level, totals: list[Tensor], noise: list[Tensor | None]
) -> Table:
    """Steps of several stages, each evaluated at a level of `levels`, of which the first is the step's start.

    Args:
        integrand: in which the stages are sums.
        levels: where the stages evaluate, parts of shape `(n,)` each.
        end: where the steps arrive.
        totals: of each stage `(n, i + 1)`: y after stage i is y at the start + sum_j totals[i][:, j] h_j, j = 0 .. i.
        noise: of each stage, what is added on arrival, in x; it stays in y from then on.
    """
    stages, rows = len(levels), []
    for i, (level, total) in enumerate(zip(levels, totals, strict=True)):
        change = total.clone()
        if i:
            change[:, :i] -= totals[i - 1]  # y has what the stage before added
        newest_first = torch.nn.functional.pad(change.flip(1), (0, stages - i - 1))
        rows.append(sum_table(integrand, level, levels[i + 1] if i + 1 < stages else end, newest_first, noise[i]))
    return interleave(rows)


def interleave(tables: list[Table]) -> Table:
    """Row 0 of each table, then row 1 of each, and so on."""
    level = Level(*(torch.stack(parts, 1).flatten() for parts in zip(*(table.level for table in tables), strict=True)))
    parts = (torch.stack([getattr(table, name) for table in tables], 1).flatten(0, 1) for name in "abcpq")
    return Table(level, *parts)

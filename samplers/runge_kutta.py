r"""Runge-Kutta methods for the probability flow.

In a integrand dy = h dm (`samplers.integrands`) a Runge-Kutta method is that of any ordinary differential equation. In
the noise
integrand, over r = sigma / alpha, Heun's method is that of Karras et al. 2022, algorithm 1: a DDIM step, and a second
one
that replaces the slope at the start by the mean of both ends. As rows, with M the measure of the step:

    stage   y' = y + M h_0
    step    y'' = y' + M/2 (h_1 - h_0)

The second row needs no memory of y: the stage holds it.

EDM's sampler adds noise before each step, from r up to (1 + gamma) r, and takes Heun's step from there. Noise of that
kind is the forward process, so that nothing but Heun's error is made; it belongs to the row before. The first step,
whose start is the prior, goes without.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.integrands import Integrand, NoiseIntegrand, ReverseIntegrand, integrand_of, level_at, stage_table
from samplers.table import Table
from scoresde.errors import require
from scoresde.sde import SDE, Level

IntegrandName = Literal["noise", "denoised", "velocity"]
MIDPOINT = ((1 / 2,), (0, 1))
HEUN = ((1,), (1 / 2, 1 / 2))
RK4 = ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta(
    integrand: Integrand,
    sde: SDE,
    start: Level,
    end: Level,
    tableau: tuple[tuple[float, ...], ...],
    noise: list[Tensor | None] | None = None,
) -> Table:
    """Steps of an explicit method: row i of `tableau` holds the weights of stage i + 1, the last those of the step."""
    m_0, m_1 = integrand.measure(start.noise_level), integrand.measure(end.noise_level)
    levels = [start]
    for row in tableau[:-1]:
        share = sum(row)  # how far the stage reaches
        levels.append(end if share == 1 else level_at(sde, integrand.noise_level(m_0 + share * (m_1 - m_0))))
    totals = [(m_1 - m_0)[:, None] * torch.tensor(row, dtype=m_0.dtype) for row in tableau]
    return stage_table(integrand, levels, end, totals, noise or [None] * len(tableau))


@final
@dataclass(frozen=True)
class Heun(StepSampler):
    """Heun's method on the probability flow (in the noise integrand Karras et al. 2022, algorithm 1, for any alpha).

    Strong order 2; two evaluations a step (one for the last, to clean data); no noise.
    """

    integrand: IntegrandName = "noise"

    order = 2
    noise = "none"
    default_grid = staticmethod(grids.karras)
    default_num_steps = 20

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand), sde, start, end, HEUN)


@final
@dataclass(frozen=True)
class Midpoint(StepSampler):
    """The midpoint method on the probability flow. Strong order 2; two evaluations a step; no noise."""

    integrand: IntegrandName = "velocity"

    order = 2
    noise = "none"
    default_grid = staticmethod(grids.power_phi)
    default_num_steps = 20

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand), sde, start, end, MIDPOINT)


@final
@dataclass(frozen=True)
class RungeKutta4(StepSampler):
    """The classical Runge-Kutta method on the probability flow. Strong order 4; four evaluations a step; no noise."""

    integrand: IntegrandName = "velocity"

    order = 4
    noise = "none"
    default_grid = staticmethod(grids.power_phi)
    default_num_steps = 20

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand), sde, start, end, RK4)


@final
@dataclass(frozen=True)
class StochasticHeun(StepSampler):
    """Heun's method on the reverse SDE, in the integrand where its noise has unit strength and stands alone: dy = D dm
    + dB.

    Weak order 2, as Heun's method has for noise that does not depend on the state (Kloeden and Platen 1992, section
    14.1); two evaluations a step; independent noise.
    """

    order = 2
    noise = "independent"
    default_grid = staticmethod(grids.uniform_log_snr)
    default_num_steps = 100

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        integrand = ReverseIntegrand(1.0)
        return runge_kutta(integrand, sde, start, end, HEUN, [integrand.noise(start, end), None])


@final
@dataclass(frozen=True)
class EDM(StepSampler):
    """Karras et al. 2022, algorithm 2: noise up to (1 + gamma) r, then a step of Heun's method.

    gamma is the lesser of churn / num_steps and sqrt(2) - 1.

    Strong order 2 without churn, weak order 2 with it (0 where churn_scale is not 1: then it converges to something
    else); two evaluations a step; independent noise.

    Attributes:
        churn: how much noise is added in all (S_churn).
        churn_min, churn_max: the noise levels between which it is (S_tmin, S_tmax).
        churn_scale: factor of the added noise (S_noise); above 1 it makes up for what a network smooths away.
    """

    churn: float = 40.0  # Karras et al. 2022, table 5, ImageNet-64; with the three below
    churn_min: float = 0.05
    churn_max: float = 50.0
    churn_scale: float = 1.003

    default_grid = staticmethod(grids.karras)
    default_num_steps = 256  # Karras et al. 2022, figure 4

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.churn_scale == 1 or self.churn == 0 else 0

    def __post_init__(self) -> None:
        require(0 <= self.churn < math.inf, f"churn={self.churn}: must not be negative, and finite")
        require(
            0 <= self.churn_min <= self.churn_max,
            f"churn_min={self.churn_min}, churn_max={self.churn_max}: need 0 <= churn_min <= churn_max",
        )
        require(self.churn_scale >= 0, f"churn_scale={self.churn_scale}: must not be negative")

    @property
    def noise(self) -> str:  # type: ignore[override]
        return "independent" if self.churn else "none"

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        r = start.noise_level
        gamma = min(self.churn / len(r), math.sqrt(2) - 1)
        churned = torch.where((r >= self.churn_min) & (r <= self.churn_max), (1 + gamma) * r, r)
        churned[0] = r[0]
        churned = torch.minimum(churned, sde.noise_level(torch.tensor(sde.t_max, dtype=r.dtype)))
        moved = churned > r
        above = Level(*(torch.where(moved, a, b) for a, b in zip(level_at(sde, churned), start, strict=True)))
        # a step arrives above the next start, with what noise it takes to be there
        arrival = Level(*(torch.cat([a[1:], b[-1:]]) for a, b in zip(above, end, strict=True)))
        added = torch.sqrt((arrival.noise_level**2 - end.noise_level**2).clamp(min=0))
        noise = self.churn_scale * arrival.alpha * torch.where(torch.cat([moved[1:], moved.new_zeros(1)]), added, 0)
        integrand = NoiseIntegrand()
        rise = (end.noise_level - above.noise_level)[:, None]
        totals = [rise, rise * torch.tensor(HEUN[1], dtype=r.dtype)]
        return stage_table(integrand, [above, end], arrival, totals, [None, noise])

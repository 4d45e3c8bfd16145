r"""Runge-Kutta methods for the probability flow.

In an integrand dy = h dm (`samplers.integrands`) a Runge-Kutta method is that of any ordinary differential equation. In
the noise integrand, over r = sigma / alpha, Heun's method is that of Karras et al. 2022, algorithm 1: a DDIM step, and
a second one that replaces the slope at the start by the mean of both ends. As rows, with M the measure of the step:

    stage   y' = y + M h_0
    step    y'' = y' + M/2 (h_1 - h_0)

The second row needs no memory of y: the stage holds it.

EDM's sampler adds noise before each step, from r up to (1 + gamma) r, and takes Heun's step from there. Noise of that
kind is the forward process, so that nothing but Heun's error is made; it belongs to the row before. The first step,
whose start is the prior, goes without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import NoiseKind, StepSampler, TableSampler
from samplers.integrands import Integrand, IntegrandName, NoiseIntegrand, ReverseIntegrand, integrand_of, stage_table
from samplers.table import Table, clean_table, concatenate
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

Tableau = tuple[tuple[float, ...], ...]

MIDPOINT: Tableau = ((1 / 2,), (0, 1))
HEUN: Tableau = ((1,), (1 / 2, 1 / 2))
RK4: Tableau = ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta(
    integrand: Integrand,
    sde: SDE,
    start: Level,
    end: Level,
    tableau: Tableau,
    noise: Sequence[Tensor | None] | None = None,
) -> Table:
    """Steps of an explicit method: row i of `tableau` holds the weights of stage i + 1, the last those of the step."""
    m_0 = integrand.measure(start.noise_level)
    m_1 = integrand.measure(end.noise_level)
    levels = [start]
    for row in tableau[:-1]:
        reach = sum(row)  # how far the stage goes, as a share of the step
        r = integrand.noise_level(m_0 + reach * (m_1 - m_0))
        levels.append(end if reach == 1 else sde.at_noise_level(r))
    totals = [(m_1 - m_0)[:, None] * torch.tensor(row, dtype=m_0.dtype) for row in tableau]
    return stage_table(integrand, levels, end, totals, noise or [None] * len(tableau))


@final
@dataclass(frozen=True)
class Heun(StepSampler):
    """Heun's method on the probability flow (in the noise integrand Karras et al. 2022, algorithm 1, for any alpha).

    Strong order 2; two evaluations a step (one for the last, to clean data); no noise.

    Attributes:
        integrand: what is integrated: noise, denoised or velocity.
    """

    integrand: IntegrandName = "noise"

    order = 2
    noise = "none"
    min_steps = 1
    one_step = True
    default_num_steps = 20

    def __post_init__(self) -> None:
        integrand_of(self.integrand)

    @property
    def fewest_steps(self) -> int:
        """With the noise integrand 5: two steps from VP's largest noise end a hundred times too wide."""
        return 5 if self.integrand == "noise" else 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.karras(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand, model.sigma_data), model.sde, start, end, HEUN)


@final
@dataclass(frozen=True)
class Midpoint(StepSampler):
    """The midpoint method on the probability flow. Strong order 2; two evaluations a step; no noise.

    Attributes:
        integrand: what is integrated: noise, denoised or velocity.
    """

    integrand: IntegrandName = "velocity"

    order = 2
    noise = "none"
    min_steps = 1
    one_step = True
    default_num_steps = 20

    def __post_init__(self) -> None:
        integrand_of(self.integrand)

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.power_phi(model.sde, num_steps, sigma_data=model.sigma_data)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand, model.sigma_data), model.sde, start, end, MIDPOINT)


@final
@dataclass(frozen=True)
class RungeKutta4(StepSampler):
    """The classical Runge-Kutta method on the probability flow. Strong order 4; four evaluations a step; no noise.

    Attributes:
        integrand: what is integrated: noise, denoised or velocity.
    """

    integrand: IntegrandName = "velocity"

    order = 4
    noise = "none"
    min_steps = 1
    one_step = True
    default_num_steps = 20

    def __post_init__(self) -> None:
        integrand_of(self.integrand)

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.power_phi(model.sde, num_steps, sigma_data=model.sigma_data)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        return runge_kutta(integrand_of(self.integrand, model.sigma_data), model.sde, start, end, RK4)


@final
@dataclass(frozen=True)
class StochasticHeun(StepSampler):
    """Heun's method on the reverse SDE, in the scale where it is dy = D dm + dB, with noise of unit strength.

    Weak order 2, as Heun's method has for noise that does not depend on the state (Kloeden and Platen 1992, section
    14.1); two evaluations a step; independent noise.
    """

    order = 2
    noise = "independent"
    min_steps = 1
    one_step = True
    default_num_steps = 100

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        integrand = ReverseIntegrand(1.0)
        return runge_kutta(integrand, model.sde, start, end, HEUN, [integrand.noise(start, end), None])


@final
@dataclass(frozen=True)
class EDM(TableSampler):
    """Karras et al. 2022, algorithm 2: noise up to (1 + gamma) r, then a step of Heun's method.

    gamma is the smaller of churn / N and sqrt(2) - 1, N the number of noise levels above 0. No noise is added at the
    first level, the top of the SDE's range. The churn of a step depends on their number and on its place: this is not a
    `StepSampler`, and not a predictor.

    Strong order 2 without churn, weak order 2 with it (0 if churn_scale is not 1: then it converges to something else);
    two evaluations a step; independent noise.

    Attributes:
        churn: how much noise is added in all (S_churn); 0 is Heun's method.
        churn_min: smallest noise level with churn (S_tmin).
        churn_max: largest noise level with churn (S_tmax).
        churn_scale: factor of the added noise (S_noise); above 1 it makes up for what a network smooths away.
    """

    churn: float = 40.0  # Karras et al. 2022, table 5, ImageNet-64; with the three below
    churn_min: float = 0.05
    churn_max: float = 50.0
    churn_scale: float = 1.003

    min_steps = 1
    default_num_steps = 256  # Karras et al. 2022, figure 4

    def __post_init__(self) -> None:
        require(0 <= self.churn < math.inf, f"churn={self.churn}: must not be negative, and finite")
        require(
            0 <= self.churn_min <= self.churn_max,
            f"churn_min={self.churn_min}, churn_max={self.churn_max}: need 0 <= churn_min <= churn_max",
        )
        require(self.churn_scale >= 0, f"churn_scale={self.churn_scale}: must not be negative")

    @property
    def order(self) -> int:
        return 2 if self.churn_scale == 1 or self.churn == 0 else 0

    @property
    def noise(self) -> NoiseKind:
        return "independent" if self.churn else "none"

    @property
    def fewest_steps(self) -> int:
        """As of Heun's method with the noise integrand."""
        return 5

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.karras(model.sde, num_steps)

    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        level, to_clean = self.noisy_levels(model, grid)
        r = level.noise_level
        gamma = min(self.churn / len(r), math.sqrt(2) - 1)
        churned = torch.where((r >= self.churn_min) & (r <= self.churn_max), (1 + gamma) * r, r)
        churned[0] = r[0]
        if not to_clean:
            churned[-1] = r[-1]  # no step follows
        churned = torch.minimum(churned, model.sde.span().noise_level[0])
        moved = churned > r
        above = Level.join(
            lambda both: torch.where(moved, both[0], both[1]), [model.sde.at_noise_level(churned), level]
        )
        tables = []
        if len(r) > 1:
            tables.append(self._steps(above[:-1], level[1:], above[1:]))
        if to_clean:
            tables.append(clean_table(above[-1:]))
        return concatenate(tables)

    def _steps(self, start: Level, end: Level, arrival: Level) -> Table:
        """Heun's steps from `start` to `end`, which arrive with what noise it takes to be at `arrival`."""
        added = torch.sqrt((arrival.noise_level**2 - end.noise_level**2).clamp(min=0))
        noise = self.churn_scale * arrival.alpha * torch.where(arrival.noise_level > end.noise_level, added, 0)
        rise = (end.noise_level - start.noise_level)[:, None]
        totals = [rise, rise * torch.tensor(HEUN[1], dtype=rise.dtype)]
        return stage_table(NoiseIntegrand(), [start, end], arrival, totals, [None, noise])

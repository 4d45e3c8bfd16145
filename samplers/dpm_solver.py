r"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b): exponential integrators in log r.

DPM-Solver integrates the noise, DPM-Solver++ the estimate of x_0: two integrands of one flow (`samplers.integrands`).
In log r, with h the length of a step, the single-step methods evaluate at the start and at r_1 h (and r_2 h):

    order 1    y + M h_0                                           DDIM
    order 2    r_1 = 1/2:  y + M h_1                               midpoint
    order 3    r_1 = 1/3, r_2 = 2/3: the stage at r_2 and the end integrate the line through h_0 and h_1, h_0 and h_2

where M is the measure of the step: Lu et al. 2022a, algorithms 1 and 2, and 2022b, algorithm 1. The multistep methods
take the slopes from the rows before (`samplers.multistep`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.integrands import Integrand, ReverseIntegrand, integrand_of, stage_table
from samplers.multistep import Multistep, Scheme, check_values
from samplers.quadrature import LogSNR, weights
from samplers.table import Table
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

Estimate = Literal["denoised", "noise"]
STAGES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}  # where methods of an order evaluate, of a step in log r


def single_steps(
    integrand: Integrand, sde: SDE, start: Level, end: Level, order: int
) -> tuple[list[Level], list[Tensor]]:
    """The levels of the stages of single steps, and what each stage has added to y (see `stage_table`)."""
    first = torch.log(start.noise_level)
    last = torch.log(end.noise_level)
    logs = [first + place * (last - first) for place in STAGES[order]]
    levels = [start, *(sde.at_noise_level(torch.exp(log_r)) for log_r in logs[1:])]

    def line(through: list[Tensor], to: Tensor) -> Tensor:
        return weights(integrand, LogSNR(), torch.stack(through, 1), first, to)

    zero = torch.zeros_like(first)[:, None]
    if order == 1:
        return levels, [line(logs, last)]
    if order == 2:
        return levels, [line(logs[:1], logs[1]), torch.cat([zero, line(logs[:1], last)], 1)]
    end_weights = line([logs[0], logs[2]], last)
    return levels, [
        line(logs[:1], logs[1]),
        line(logs[:2], logs[2]),
        torch.cat([end_weights[:, :1], zero, end_weights[:, 1:]], 1),
    ]


def _check(order: int, integrand: str) -> None:
    check_values("order", order, 3)
    require(integrand in ("denoised", "noise"), f"integrand={integrand!r}: need 'denoised' or 'noise'")


@final
@dataclass(frozen=True)
class DPMSolver(Multistep):
    """DPM-Solver++ (integrand "denoised") and DPM-Solver ("noise"), multistep: 2M and 3M are of order 2 and 3.

    Strong order `order`; one evaluation a step; no noise. Order 1 is DDIM.

    Attributes:
        order: 1 to 3.
        integrand: denoised (DPM-Solver++) or noise (DPM-Solver).
    """

    order: int = 2
    integrand: Estimate = "denoised"

    noise = "none"
    default_num_steps = 20

    def __post_init__(self) -> None:
        _check(self.order, self.integrand)

    @property
    def min_steps(self) -> int:
        return self.order

    @property
    def one_step(self) -> bool:
        return self.order == 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def scheme(self, model: ScoreModel) -> Scheme:
        half: Literal["B2"] | None = "B2" if self.order == 2 else None
        return Scheme(integrand_of(self.integrand), LogSNR(), self.order, half=half)


@final
@dataclass(frozen=True)
class DPMSolverSingle(StepSampler):
    """DPM-Solver++ (integrand "denoised") and DPM-Solver ("noise"), single-step: 2S and 3S are of order 2 and 3.

    Strong order `order`; `order` evaluations a step; no noise. Order 1 is DDIM.

    Attributes:
        order: 1 to 3.
        integrand: denoised (DPM-Solver++) or noise (DPM-Solver).
    """

    order: int = 2
    integrand: Estimate = "denoised"

    noise = "none"
    min_steps = 1
    one_step = True
    default_num_steps = 10

    def __post_init__(self) -> None:
        _check(self.order, self.integrand)

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        integrand = integrand_of(self.integrand)
        levels, totals = single_steps(integrand, model.sde, start, end, self.order)
        return stage_table(integrand, levels, end, totals, [None] * self.order)


@final
@dataclass(frozen=True)
class SDEDPMSolverSingle(StepSampler):
    """SDE-DPM-Solver++(2S): the single-step method of order 2 on the reverse SDE.

    The noise of the first half stays in the second, as on one path of Brownian motion: sample i of a seed converges to
    one limit as the grid is refined. Weak order 1; two evaluations a step; path noise.
    """

    order = 1
    noise = "path"
    min_steps = 1
    one_step = True
    default_num_steps = 50

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        integrand = ReverseIntegrand(1.0)
        levels, totals = single_steps(integrand, model.sde, start, end, 2)
        noise = [integrand.noise(start, levels[1]), integrand.noise(levels[1], end)]
        return stage_table(integrand, levels, end, totals, noise)

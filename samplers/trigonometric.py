r"""The trigonometric multistep solver: the probability flow over phi = atan(noise level / sd), to clean data itself.

In the velocity integrand (`samplers.integrands`) the flow is dy = -F dphi with x = sqrt(alpha^2 + sigma^2/sd^2) y and
F the
output of Karras et al.'s network: x, D and F are regular at both ends of phi, for sd near the data's scale F is small,
and no part of the equation is stiff. So Adams and Bashforth's method, with Adams and Moulton's correction at the next
evaluation, may step to phi = 0 itself; there x = y is clean data, and no truncation is left. The nodes

    phi_k = phi_max (1 - k / n)^power

are finer towards the data: with power 1 the last step is one of Euler's whatever the order, with power p the last nodes
are n^-p apart. On exact scores order 4 with power 2 is best, on trained networks 2 or 3 with 1.5, whose errors are
rougher; `samplers.fitted.pilot` finds out for a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import TableSampler
from samplers.integrands import VelocityIntegrand
from samplers.multistep import Scheme, check_values, multistep_table
from samplers.quadrature import Phi
from samplers.table import Table
from scoresde.sde import SDE, Level


def clean(level: Level) -> Level:
    """The level of clean data, parts `(1,)`."""
    zero = torch.zeros_like(level.t[:1])
    return Level(zero, torch.ones_like(zero), zero)


def to_clean(level: Level) -> Level:
    """Where steps from the levels of a grid, parts `(n,)`, arrive if the last leads to clean data."""
    return Level(*(torch.cat([part[1:], last]) for part, last in zip(level, clean(level), strict=True)))


@final
@dataclass(frozen=True)
class Trigonometric(TableSampler):
    """Adams-Bashforth on F over phi with Adams-Moulton's correction, `num_values` values a step, to clean data.

    Strong order `num_values` + 1; one evaluation a step; no noise. The first steps take the values that there are.

    Attributes:
        num_values: how many values of F a step knows.
        sd: the scale of the data.
    """

    num_values: int = 2
    sd: float = 0.7

    noise = "none"
    default_grid = staticmethod(grids.phi_to_clean)
    default_num_steps = 20

    def __post_init__(self) -> None:
        check_values("num_values", self.num_values, 4)
        VelocityIntegrand(self.sd)

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.num_values + 1

    def table(self, sde: SDE, grid: Tensor) -> Table:
        grid = grids.check_grid(sde, grid)
        level = sde.level(grid[:-1])
        end = to_clean(level) if grid[-1] == 0 else sde.level(grid[1:])
        num_values = min(self.num_values, len(level.t))
        return multistep_table(Scheme(VelocityIntegrand(self.sd), Phi(self.sd), num_values, True), level, end)

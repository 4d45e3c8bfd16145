r"""The trigonometric multistep solver: the probability flow over phi = atan(r / sigma_data), all the way to clean data.

In the velocity integrand (`samplers.integrands`) the flow is dy = h dphi with
x = sqrt(alpha^2 + sigma^2/sigma_data^2) y. x, D and h stay bounded at both ends of phi. So the Adams-Bashforth method,
with an Adams-Moulton correction at the next evaluation, can step to phi = 0 itself. There x = y is clean data, and no
truncation is left. The nodes

    phi_k = phi_max (1 - k / n)^power

are finer towards the data: the last step is about phi_max n^-power long. On exact scores order 4 with power 2 is best;
on trained networks, whose errors are rougher, order 2 or 3 with power 1.5. `samplers.fitted` chooses nodes and weights
for one model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from samplers import grids
from samplers.base import TableSampler
from samplers.integrands import VelocityIntegrand, to_clean
from samplers.multistep import Scheme, check_values, multistep_table
from samplers.quadrature import Phi
from samplers.table import Table
from scoresde.score_model import ScoreModel


@final
@dataclass(frozen=True)
class Trigonometric(TableSampler):
    """Adams-Bashforth over phi with an Adams-Moulton correction, to clean data.

    Strong order `num_values` + 1; one evaluation a step; no noise. The first steps use as many values as there are.

    Attributes:
        num_values: how many values of the velocity integrand a step uses, 1 to 4.
    """

    num_values: int = 2

    noise = "none"
    min_steps = 1
    default_num_steps = 20

    def __post_init__(self) -> None:
        check_values("num_values", self.num_values, 4)

    @property
    def order(self) -> int:
        return self.num_values + 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.phi_to_clean(model.sde, num_steps, sigma_data=model.sigma_data)

    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        grid = grids.check_grid(model.sde, grid)
        level = model.sde.level(grid[:-1])
        end = to_clean(level) if grid[-1] == 0 else model.sde.level(grid[1:])
        num_values = min(self.num_values, len(level))
        integrand = VelocityIntegrand(model.sigma_data)
        variable = Phi(model.sigma_data)
        return multistep_table(Scheme(integrand, variable, num_values, corrector=True), level, end)

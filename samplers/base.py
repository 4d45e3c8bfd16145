r"""What a sampler is.

A sampler is a frozen set of numbers: no model, no grid and no random state inside. It declares what it claims (order,
evaluations a step, kind of noise, the grid and the number of steps that suit it), and the tests read the declaration.
Most samplers are tables and say only what a step is (`StepSampler`); one that is not linear in the denoiser implements
`run` itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.table import Callback, Loop, Table, concatenate, denoiser_table
from scoresde.errors import UsageError, require
from scoresde.noise import Noise, NoiseSource, Path
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level


class Sampler(ABC):
    """Noise to data along a grid.

    Attributes:
        order: the power of the step size with which the error at a fixed time falls: strong order for deterministic
            samplers, weak order for stochastic ones, 0 for one that does not converge as its steps shrink.
        noise: "none", "independent" (fresh noise in every row), or "path" (increments of one Brownian motion, the same
            for every grid).
        default_grid: the grid that is used if the user gives none.
        default_num_steps: the number of its steps if the user gives none; None where the sampler chooses its steps.
    """

    order: int
    noise: Literal["none", "independent", "path"]
    default_grid: Callable[[SDE, Any], Tensor]
    default_num_steps: int | None

    @abstractmethod
    def num_evaluations(self, sde: SDE, grid: Tensor) -> int | None:
        """Network evaluations along a grid; None where they depend on the model."""

    @abstractmethod
    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Carries x_T `(B, *shape)` along a grid (see `samplers.grids`) to its last time."""


class TableSampler(Sampler):
    """A sampler that is a table on every grid.

    Attributes:
        min_steps: the fewest steps between noisy levels with which it is what it is called.
    """

    min_steps: int = 1

    @abstractmethod
    def table(self, sde: SDE, grid: Tensor) -> Table:
        """The whole table on a grid."""

    @final
    def num_evaluations(self, sde: SDE, grid: Tensor) -> int:
        return len(self.table(sde, grid))

    @final
    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        return self.follow(Loop(self.table(model.sde, grid), model, x_T), x_T, grid, noise, cond, callback)

    @final
    def follow(
        self,
        loop: Loop,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """`run` with this sampler's loop on the grid, where it is ready already."""
        if self.noise == "path":
            if not isinstance(noise, Noise):
                raise UsageError(
                    f"noise={type(noise).__name__}: {self} needs Noise(seed, indices), to make a path of it"
                )
            noise = along_path(noise, loop.model.sde, loop.table, grid)
        return loop(x_T, noise, cond, callback)


class StepSampler(TableSampler):
    """A sampler that says what the steps between noisy levels are; the last, to clean data, is the denoiser."""

    @abstractmethod
    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        """The rows of the steps from `start` to `end`, parts of shape `(num_steps,)`, all above noise level 0."""

    @final
    def table(self, sde: SDE, grid: Tensor) -> Table:
        """Where the grid ends with 0, the table's last row is the denoiser: y' = D."""
        grid = grids.check_grid(sde, grid)
        to_clean = bool(grid[-1] == 0)
        level = sde.level(grid[:-1] if to_clean else grid)
        last, tables = level.at(slice(-1, None)), []
        num_steps = len(level.t) - 1
        require(
            num_steps >= self.min_steps or num_steps == 0,
            f"num_steps={len(grid) - 1}: {self} needs at least {self.min_steps + to_clean}",
        )
        if num_steps:
            tables.append(self.steps(sde, level.at(slice(None, -1)), level.at(slice(1, None))))
        if to_clean:
            zero, one = torch.zeros_like(last.t), torch.ones_like(last.t)
            tables.append(denoiser_table(last, zero, one, zero))
        return concatenate(tables)


def along_path(noise: Noise, sde: SDE, table: Table, grid: Tensor) -> Path:
    """Noise for the rows of a table along one Brownian motion, whose clock is the signal-to-noise ratio.

    In that clock the noise of the reverse SDE has unit strength (`samplers.integrands`); its coordinate is the
    log-SNR, from
    t_max to t_min.
    """
    first, last = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()
    ends = table.level.log_snr if grid[-1] == 0 else torch.cat([table.level.log_snr, sde.log_snr(grid[-1:])])
    points = ((ends - first) / (last - first)).tolist()
    return Path(noise, lambda u: math.exp(first + u * (last - first)), points)

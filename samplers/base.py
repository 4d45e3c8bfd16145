r"""What a sampler is.

A sampler is a frozen set of numbers: no model, no grid and no random state inside. It declares what it claims (order,
evaluations a step, kind of noise, the grid and the number of steps that suit it), and the tests read the declaration.
Most samplers are tables and say only what a step is; one that is not linear in the denoiser implements `run` itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.noise import Noise
from samplers.table import Callback, Table, concatenate, denoiser_table
from samplers.table import run as run_table
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level


class Sampler(ABC):
    """Noise to data along a grid.

    Attributes:
        order: the power of the step size with which the error at a fixed time falls: strong order for deterministic
            samplers, weak order for stochastic ones, 0 for one that does not converge as its steps shrink.
        noise: "none", or "independent" (fresh noise in every row).
        default_grid: the grid that is used if the user gives none.
        default_num_steps: the number of its steps if the user gives none; None where the sampler chooses its steps.
    """

    order: int
    noise: Literal["none", "independent"]
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
        noise: Noise,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Carries x_T `(B, *shape)` along a grid (see `samplers.grids`) to its last time."""


class TableSampler(Sampler):
    """A sampler that is a table on every grid."""

    @abstractmethod
    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        """The rows of the steps from `start` to `end`, parts of shape `(num_steps,)`, all above noise level 0."""

    @final
    def table(self, sde: SDE, grid: Tensor) -> Table:
        """The whole table on a grid. Where the grid ends with 0, its last row is the denoiser: y' = D."""
        grid = grids.check_grid(sde, grid)
        to_clean = bool(grid[-1] == 0)
        level = sde.level(grid[:-1] if to_clean else grid)
        last, tables = level.at(slice(-1, None)), []
        if len(level.t) > 1:
            tables.append(self.steps(sde, level.at(slice(None, -1)), level.at(slice(1, None))))
        if to_clean:
            zero, one = torch.zeros_like(last.t), torch.ones_like(last.t)
            tables.append(denoiser_table(last, zero, one, zero))
        return concatenate(tables)

    @final
    def num_evaluations(self, sde: SDE, grid: Tensor) -> int:
        return len(self.table(sde, grid))

    @final
    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: Noise,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        return run_table(self.table(model.sde, grid), model, x_T, noise, cond, callback)

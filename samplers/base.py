r"""What a sampler is.

A sampler is a frozen set of numbers: no model, no grid and no random state inside. It declares its properties (order,
kind of noise, fewest steps, whether it is a one-step method), and the tests read that. Most samplers are
tables and say only what a step is (`StepSampler`). One that is not linear in the denoiser has a `Prepared` of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from samplers import grids
from samplers.table import Callback, Loop, Projection, Table, clean_table, concatenate
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.noise import Noise, NoiseSource, Path
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

NoiseKind = Literal["none", "independent", "path"]


class Samples(NamedTuple):
    """Samples `(num_samples, *shape)` in the model's units, and the network evaluations of each of them.

    If a sampler chooses its steps, `nfe` is that of the batch that took the most.
    """

    x: Tensor
    nfe: int


class Prepared(ABC):
    """A sampler made ready for a model and a grid; called for batch after batch.

    Attributes:
        model: what gives the score.
        grid: the times, float64 on the host.

    Example:
        prepared = samplers.prepare(model, Heun())
        x, nfe = prepared.draw(Noise(seed=0, indices=torch.arange(16)))
    """

    model: ScoreModel
    grid: Tensor

    @abstractmethod
    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        """Carries a batch x_T `(B, *shape)` along the grid to its last time.

        Args:
            x_T: the state at the grid's first time.
            noise: what the sampler draws from.
            cond: what the model is conditioned on.
            callback: called after each evaluation.
            project: changes the state after each row.
        """

    @final
    def prior(self, noise: Noise) -> Tensor:
        """x_T ~ N(0, sigma^2 I) at the grid's first time, `(B, *shape)`: draw 0 of the noise."""
        sigma = self.model.sde.sigma(self.grid[0]).item()
        return sigma * noise.normal(0, self.model.shape, self.model.dtype)

    @final
    def draw(
        self,
        noise: Noise,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        """Samples for the indices of the noise, from the prior. Other arguments as in `__call__`."""
        return self(self.prior(noise), noise, cond, callback, project)


class Sampler(ABC):
    """Noise to data along a grid.

    The properties are declarations; a subclass gives them as class attributes, fields or properties.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """The power of the step size with which the error at a fixed time falls.

        Strong order for deterministic samplers, weak order for stochastic ones; 0 for a sampler that does not converge
        as its steps shrink.
        """

    @property
    @abstractmethod
    def noise(self) -> NoiseKind:
        """The kind of noise.

        "none", "independent" (fresh noise in every row), or "path" (increments of one Brownian motion, the same for
        every grid).
        """

    @abstractmethod
    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        """The grid that is used if the user gives none, with a number of steps or the sampler's own number.

        Raises:
            UsageError: for a number of steps that the sampler does not take.
        """

    @abstractmethod
    def evaluated(self, model: ScoreModel, grid: Tensor) -> Level | None:
        """The levels at which the model is evaluated along a grid, in order; None if they depend on its output."""

    @final
    def num_evaluations(self, model: ScoreModel, grid: Tensor) -> int | None:
        """Network evaluations of a sample along a grid; None if they depend on the model's output."""
        levels = self.evaluated(model, grid)
        return None if levels is None else model.num_calls(levels)

    @abstractmethod
    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        """The sampler made ready for a model and a grid.

        Raises:
            UsageError: for a grid that the sampler cannot step along.
        """

    @final
    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Carries one batch x_T `(B, *shape)` along a grid to its last time."""
        return self.prepare(model, grid)(x_T, noise, cond, callback).x


class TableSampler(Sampler):
    """A sampler that is a table on every grid."""

    @property
    @abstractmethod
    def min_steps(self) -> int:
        """The fewest steps between noisy levels that the sampler takes."""

    @property
    @abstractmethod
    def default_num_steps(self) -> int:
        """The number of steps if the user gives none."""

    @property
    def fewest_steps(self) -> int:
        """The fewest steps of the default grid that are of use, the one to clean data included.

        A grid of one's own may have a single step, which is the denoiser.
        """
        return 1 if self.min_steps == 1 else self.min_steps + 1

    @abstractmethod
    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        """The grid that is used if the user gives none (see `samplers.grids`)."""

    @abstractmethod
    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        """The whole table for a model's SDE and scale of the data, on a grid."""

    @final
    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        count = self.default_num_steps if num_steps is None else num_steps
        require(
            count >= self.fewest_steps or count < 1,  # the grid names a number that is none
            f"num_steps={count}: {self} needs at least {self.fewest_steps}; Trigonometric() is of use with any number",
        )
        return self.default_grid(model, count)

    @final
    def noisy_levels(self, model: ScoreModel, grid: Tensor) -> tuple[Level, bool]:
        """The levels of a grid above noise level 0, parts `(n,)`, and whether the grid ends with clean data.

        Raises:
            UsageError: for a grid that does not fit the SDE, or with fewer than `min_steps` steps between noisy levels.
        """
        grid = grids.check_grid(model.sde, grid)
        to_clean = bool(grid[-1] == 0)
        level = model.sde.level(grid[:-1] if to_clean else grid)
        num_steps = len(level) - 1
        require(
            num_steps >= self.min_steps or num_steps == 0,
            f"num_steps={len(grid) - 1}: {self} needs at least {self.min_steps + to_clean}",
        )
        return level, to_clean

    @final
    def evaluated(self, model: ScoreModel, grid: Tensor) -> Level:
        return self.table(model, grid).level

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        table = self.table(model, grid)
        require(
            len(table) < len(grid) or not model.one_evaluation_a_step,
            f"{self}: evaluates the model {len(table)} times in {len(grid) - 1} steps, and guidance with momentum "
            "needs one evaluation a step; take DDIM(), or set the momentum to 0",
        )
        return PreparedTable(table, model, grid, self.noise == "path")


@final
class PreparedTable(Prepared):
    """A table with its loops, one for each size of batch, made when the first batch of that size comes.

    Args:
        table, model: what is run, on what.
        grid: the grid of the table.
        path: whether its noise is that of one Brownian motion a sample.
    """

    def __init__(self, table: Table, model: ScoreModel, grid: Tensor, path: bool = False) -> None:
        self.table = table
        self.model = model
        self.grid = grid
        self.path = path
        self._loops: dict[tuple[int, torch.device, torch.dtype], Loop] = {}

    @property
    def nfe(self) -> int:
        """Network evaluations of a sample."""
        return self.model.num_calls(self.table.level)

    def loop(self, like: Tensor) -> Loop:
        """The loop for batches like this one."""
        key = (len(like), like.device, like.dtype)
        if key not in self._loops:
            self._loops[key] = Loop(self.table, self.model, like)
        return self._loops[key]

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        if self.path:
            noise = self._path(noise)
        return Samples(self.loop(x_T)(x_T, noise, cond, callback, project), self.nfe)

    def _path(self, noise: NoiseSource) -> Path:
        """Noise for the rows along one Brownian motion, whose clock is the signal-to-noise ratio.

        In that clock the noise of the reverse SDE has unit strength (`samplers.integrands`). Its coordinate is the
        log-SNR, from t_max to t_min.
        """
        if not isinstance(noise, Noise):
            raise UsageError(
                f"noise={type(noise).__name__}: this sampler needs Noise(seed, indices), to make a path of it"
            )
        sde = self.model.sde
        log_snr = self.table.level.log_snr
        first, last = sde.span().log_snr.tolist()
        ends = log_snr if self.grid[-1] == 0 else torch.cat([log_snr, sde.log_snr(self.grid[-1:])])
        points = ((ends - first) / (last - first)).tolist()
        return Path(noise, lambda u: math.exp(first + u * (last - first)), points)


class StepSampler(TableSampler):
    """A sampler that says what the steps between noisy levels are; the last, to clean data, is the denoiser."""

    @property
    @abstractmethod
    def one_step(self) -> bool:
        """Whether a step uses nothing but its own start and end: not earlier values, and not its place in the grid."""

    @abstractmethod
    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        """The rows of the steps from `start` to `end`, parts of shape `(num_steps,)`, all above noise level 0."""

    @final
    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        """If the grid ends with 0, the table's last row is the denoiser: y' = D."""
        level, to_clean = self.noisy_levels(model, grid)
        tables = []
        if len(level) > 1:
            tables.append(self.steps(model, level[:-1], level[1:]))
        if to_clean:
            tables.append(clean_table(level[-1:]))
        return concatenate(tables)

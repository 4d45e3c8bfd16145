r"""From a model and a sampler to samples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from samplers.base import Prepared, PreparedTable, Sampler, Samples
from samplers.cuda_graph import GraphedTable
from samplers.grids import check_grid
from samplers.table import Callback, Projection
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.errors import UsageError, require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, warn_of_scale
from scoresde.sde import Level


def prepare(
    model: ScoreModel,
    sampler: Sampler,
    grid: Tensor | None = None,
    num_steps: int | None = None,
    cuda_graph: bool = False,
) -> Prepared:
    """A sampler made ready for a model and a grid: call it for batch after batch.

    Args:
        model: what gives the score.
        sampler: how to go from noise to data.
        grid: times of your own (see `samplers.grids`); the sampler's default grid if None.
        num_steps: steps of the default grid; the sampler's default if None.
        cuda_graph: record the kernels of the first batch of each size and replay them for the others; pays for many
            small batches. For samplers that are tables with no or independent noise, on CUDA.

    Raises:
        UsageError: for a grid that does not fit, or a sampler that cannot be recorded.
    """
    grid = choose_grid(model, sampler, grid, num_steps)
    prepared = sampler.prepare(model, grid)
    if not cuda_graph:
        return prepared
    if not isinstance(prepared, PreparedTable) or prepared.path:
        raise UsageError(f"cuda_graph=True: {sampler} cannot be recorded; need a table without path noise")
    return GraphedTable(prepared)


def choose_grid(model: ScoreModel, sampler: Sampler, grid: Tensor | None, num_steps: int | None) -> Tensor:
    """The grid that a user asks for, checked: times of their own, or a number of steps of the sampler's default."""
    require(grid is None or num_steps is None, "num_steps, grid: give one of the two")
    return check_grid(model.sde, sampler.grid(model, num_steps) if grid is None else grid)


@final
class Trajectory:
    """A callback that keeps x_t and the denoiser's x0_hat at every evaluation, on the host.

    Example:
        trajectory = Trajectory()
        sample(model, DDIM(), 16, callback=trajectory)
        trajectory.x_t  # (evaluations, 16, *shape)
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[tuple[float, Tensor, Tensor]]] = {}

    def __call__(self, row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        self._rows.setdefault(row, []).append((float(level.t), x_t.cpu().clone(), x0_hat.cpu().clone()))

    @property
    def t(self) -> Tensor:
        """Time of each evaluation, `(n,)`."""
        return torch.tensor([parts[0][0] for parts in self._rows.values()])

    @property
    def x_t(self) -> Tensor:
        """The state at each evaluation, `(n, num_samples, *shape)`."""
        return torch.stack([torch.cat([x_t for _, x_t, _ in parts]) for parts in self._rows.values()])

    @property
    def x0_hat(self) -> Tensor:
        """The denoiser's output at each evaluation, `(n, num_samples, *shape)`."""
        return torch.stack([torch.cat([x0_hat for _, _, x0_hat in parts]) for parts in self._rows.values()])


@torch.no_grad()
def sample(
    model: ScoreModel,
    sampler: Sampler,
    num_samples: int,
    *,
    num_steps: int | None = None,
    grid: Tensor | None = None,
    cond: Any = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int | None = None,
    callback: Callback | None = None,
    project: Projection | None = None,
    cuda_graph: bool = False,
) -> Samples:
    """Draws samples, `(num_samples, *model.shape)`, in the model's units, on its device and in its type.

    Sample i depends on (model, sampler, grid, seed, i, its cond) alone: not on the batch size, and not on how many
    others are drawn.

    Args:
        model: what gives the score.
        sampler: how to go from noise to data.
        num_samples: how many.
        num_steps: steps of the sampler's default grid; the sampler's default if None.
        grid: times of your own instead (see `samplers.grids`).
        cond: conditions with one entry a sample, one number for all, or None (see `scoresde.condition`).
        seed: which noise.
        first_index: index of the first sample: 100 samples from 0 are 60 from 0 and 40 from 60.
        batch_size: samples at a time; by default as many as need little memory (see docs/python.md).
        callback: called after each evaluation as `callback(row, level, x_t, x0_hat)`, batch after batch (`Trajectory`).
        project: changes the state after each row, as `project(row, level, x)` with the level at which the row arrives.
        cuda_graph: record the first batch's kernels and replay them (see `prepare`); without callback and projection.

    Returns:
        `(x, nfe)`.
    """
    require(
        isinstance(model, ScoreModel),
        f"model of {type(model).__name__}: need a ScoreModel; NetworkScoreModel wraps one",
    )
    require(isinstance(sampler, Sampler), f"sampler={sampler!r}: need a sampler object, such as DDIM()")
    require(num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    require(first_index >= 0, f"first_index={first_index}: must not be negative")
    size = choose_batch_size(batch_size, model.shape, model.device)
    require(
        not cuda_graph or (callback is None and project is None),
        "cuda_graph=True: a recorded loop calls no callback and no projection; leave them out",
    )
    cond = condition.from_values(cond, num_samples)
    model.check_cond(cond)
    warn_of_scale(model.sde, model.sigma_data)
    prepared = prepare(model, sampler, grid, num_steps, cuda_graph)
    drawn: list[Samples] = []
    with model.eval_mode():
        for part in batches(num_samples, size):
            noise = Noise(seed, first_index + torch.arange(part.start, part.stop, device=model.device))
            given = condition.to(condition.take(cond, part), model.device)
            drawn.append(prepared.draw(noise, given, callback, project))
    return joined(drawn)


def joined(drawn: Sequence[Samples]) -> Samples:
    """Batches of samples as one. Warns of samples that are not finite."""
    x = torch.cat([part.x for part in drawn])
    bad = int((~x.isfinite()).flatten(1).any(1).sum())
    if bad:
        warnings.warn(f"{bad} of {len(x)} samples hold NaN or infinity; has the model diverged?", stacklevel=3)
    return Samples(x, max(part.nfe for part in drawn))

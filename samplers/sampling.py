r"""From a model and a sampler to samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from samplers.base import Sampler, TableSampler
from samplers.cuda_graph import GraphedLoop
from samplers.grids import check_grid
from samplers.table import Callback, Loop
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


def prior(model: ScoreModel, grid: Tensor, noise: Noise, dtype: torch.dtype = torch.float32) -> Tensor:
    """x_T ~ N(0, sigma^2 I) at the grid's first time, `(B, *shape)`: draw 0 of the noise."""
    sigma = model.sde.sigma(grid[0]).item()
    return sigma * noise.normal(0, model.shape, dtype)


class Samples(NamedTuple):
    """Samples `(num_samples, *shape)` in the model's units, and the network evaluations of each of them.

    Where a sampler chooses its steps, `nfe` is that of the batch that took most.
    """

    x: Tensor
    nfe: int


@final
class Trajectory:
    """A callback that keeps x_t and the denoiser's x0_hat at every evaluation, on the host.

    Example:
        trajectory = Trajectory()
        sample(model, DDIM(), 16, callback=trajectory)
        trajectory.x_t  # (evaluations, 16, *shape)
    """

    def __init__(self) -> None:
        self._kept: dict[int, list[tuple[float, Tensor, Tensor]]] = {}

    def __call__(self, row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        self._kept.setdefault(row, []).append((float(level.t), x_t.cpu().clone(), x0_hat.cpu().clone()))

    @property
    def t(self) -> Tensor:
        """Time of each evaluation, `(n,)`."""
        return torch.tensor([batches[0][0] for batches in self._kept.values()])

    @property
    def x_t(self) -> Tensor:
        """The state at each evaluation, `(n, num_samples, *shape)`."""
        return torch.stack([torch.cat([x_t for _, x_t, _ in batches]) for batches in self._kept.values()])

    @property
    def x0_hat(self) -> Tensor:
        """The denoiser's output at each evaluation, `(n, num_samples, *shape)`."""
        return torch.stack([torch.cat([x0_hat for _, _, x0_hat in batches]) for batches in self._kept.values()])


@torch.no_grad()
def sample(
    model: ScoreModel,
    sampler: Sampler,
    num_samples: int,
    *,
    num_steps: int | None = None,
    grid: Tensor | None = None,
    cond: Tensor | Sequence[int] | int | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 1000,
    callback: Callback | None = None,
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
        cond: one condition a sample, `(num_samples, ...)`, one number for all, or None.
        seed: which noise.
        first_index: index of the first sample: 100 samples from 0 are 60 from 0 and 40 from 60.
        batch_size: samples at a time.
        callback: called after each evaluation as `callback(row, level, x_t, x0_hat)`, batch after batch (`Trajectory`).
        cuda_graph: record the first batch's kernels and replay them for others of its size; pays where many batches are
            small. For samplers that are tables with no or independent noise, on CUDA, without callback.

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
    require(batch_size >= 1, f"batch_size={batch_size}: need at least 1")
    require(grid is None or num_steps is None, "num_steps, grid: give one of the two")
    if cond is not None:
        cond = torch.as_tensor(cond)
        cond = cond.expand(num_samples) if cond.ndim == 0 else cond
        require(len(cond) == num_samples, f"cond of length {len(cond)}: need one a sample, {num_samples}")
        model.check_cond(cond)
    if grid is None:
        grid = sampler.default_grid(model.sde, sampler.default_num_steps if num_steps is None else num_steps)
    grid = check_grid(model.sde, grid)
    like, draw = model.like(), _drawing(model, sampler, grid, callback, cuda_graph)
    batches, evaluations = [], []
    for first in range(0, num_samples, batch_size):
        indices = torch.arange(first, min(first + batch_size, num_samples), device=like.device)
        noise = Noise(seed, first_index + indices)
        batch_cond = None if cond is None else cond[first : first + batch_size].to(like.device)
        with model.eval_mode():
            x, nfe = draw(prior(model, grid, noise, like.dtype), noise, batch_cond)
        batches.append(x)
        evaluations.append(nfe)
    return Samples(torch.cat(batches), max(evaluations))


def _drawing(
    model: ScoreModel, sampler: Sampler, grid: Tensor, callback: Callback | None, cuda_graph: bool
) -> Callable[[Tensor, Noise, Tensor | None], tuple[Tensor, int]]:
    """How a batch is drawn: from x_T, noise and condition to samples and evaluations. Tables are made ready once."""
    require(
        not cuda_graph or (isinstance(sampler, TableSampler) and sampler.noise != "path" and callback is None),
        f"cuda_graph=True: {sampler} with callback={callback}: need a table without path noise, and no callback",
    )
    if not isinstance(sampler, TableSampler):

        def counted(x_T: Tensor, noise: Noise, cond: Tensor | None) -> tuple[Tensor, int]:
            count = 0

            def counting(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
                nonlocal count
                count += 1
                if callback is not None:
                    callback(row, level, x_t, x0_hat)

            return sampler.run(model, x_T, grid, noise, cond, counting), count

        return counted
    table = sampler.table(model.sde, grid)
    ready: dict[int, Loop | GraphedLoop] = {}  # by batch size, of which there are two at most

    def tabled(x_T: Tensor, noise: Noise, cond: Tensor | None) -> tuple[Tensor, int]:
        if len(x_T) not in ready:
            loop = Loop(table, model, x_T)
            ready[len(x_T)] = GraphedLoop(loop, x_T, noise, cond) if cuda_graph else loop
        way = ready[len(x_T)]
        if isinstance(way, GraphedLoop):
            return way(x_T, noise, cond), len(table)
        return sampler.follow(way, x_T, grid, noise, cond, callback), len(table)

    return tabled

r"""The best variance of each reverse step, measured by a pilot run (after Bao et al. 2022, Analytic-DPM).

It follows from the mean squared error of the denoiser at each noise level (`scoresde.reverse`), here of samples that
the model draws itself, or of data. No training is needed. The paper's variance is one number a level, `intervals=1`:
ancestral sampling with it remains a table. Its E|eps_hat|^2 is (dim - E|eps - eps_hat|^2) for an exact model; what is
measured here is the second, with one fresh noise a sample and level.

By default the error is measured apart for the entries whose D is in one of 32 intervals. Where D is sure of an entry,
as of the black ones of an image, its variance is far smaller than elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from samplers.multistep import SDEDPMSolver
from samplers.sampling import sample
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.reverse import MeasuredVariance
from scoresde.score_model import ScoreModel, check_data

REVISION = 2  # of what is measured, for those who keep it
NUM_LEVELS = 64
INTERVALS = 32  # of the values of D
OUTER = 1e-3  # share of the data's values beyond the outermost edges
PRIOR = 10.0  # entries with the mean error of a level, by which an interval with few of its own is steadied
NUM_SAMPLES = 256
NUMBERS = 2**14  # that the samples of a pilot run hold, at least
MOST = 2**20  # values of which quantiles are taken


@torch.no_grad()
def measure_variance(
    model: ScoreModel, x_0: Tensor, cond: Any = None, batch_size: int | None = None, intervals: int = INTERVALS
) -> MeasuredVariance:
    """The variance that follows from the errors with which a model denoises some data.

    Costs `NUM_LEVELS` evaluations a sample.

    Args:
        model: what denoises.
        x_0: clean data in the model's units, `(B, *shape)`: a few thousand numbers or more.
        cond: what the model is conditioned on, one entry a sample, or None.
        batch_size: samples at a time; by default as many as need little memory.
        intervals: of the values of D, with an error for each; 1 gives one number a level.
    """
    check_data(model, x_0, cond)
    require(intervals >= 1, f"intervals={intervals}: need at least 1")
    first, last = model.sde.span().log_snr
    log_snr = torch.linspace(first.item(), last.item(), NUM_LEVELS, dtype=torch.float64)
    levels = model.sde.level(model.sde.time(log_snr).clamp(model.sde.t_min, model.sde.t_max))
    edges = _edges(x_0, intervals)
    total = torch.zeros(NUM_LEVELS, len(edges) + 1, dtype=torch.float64, device=x_0.device)
    count = torch.zeros_like(total)
    with model.eval_mode():
        for part in batches(len(x_0), choose_batch_size(batch_size, model.shape, model.device)):
            noise = Noise(1, torch.arange(part.start, part.stop, device=x_0.device))  # samples were drawn with seed 0
            given = condition.take(cond, part)
            for k in range(NUM_LEVELS):
                level = levels[k].to(x_0.device, x_0.dtype)
                eps = noise.normal(k, model.shape, x_0.dtype)
                x0_hat = model.denoise_at(level.alpha * x_0[part] + level.sigma * eps, level, given)
                interval = torch.bucketize(x0_hat, edges).flatten()
                error = (x0_hat - x_0[part]).double().square().flatten()
                total[k].index_add_(0, interval, error)
                count[k].index_add_(0, interval, torch.ones_like(error))
    mean = total.sum(1, keepdim=True) / x_0.numel()
    share = ((total + PRIOR * mean) / (count + PRIOR)).cpu() * torch.exp(levels.log_snr)[:, None]
    known = tuple(levels.log_snr.tolist())
    if len(edges) == 0:
        return MeasuredVariance(known, tuple(share[:, 0].tolist()))
    return MeasuredVariance(known, tuple(tuple(row) for row in share.tolist()), tuple(edges.tolist()))


def _edges(x_0: Tensor, intervals: int) -> Tensor:
    """The edges between intervals of one width that hold nearly all values of the data."""
    values = x_0.flatten()[:: -(-x_0.numel() // MOST)].double()
    low, high = torch.quantile(values, torch.tensor([OUTER, 1 - OUTER], dtype=values.dtype, device=values.device))
    count = intervals if high > low else 1
    return torch.linspace(low.item(), high.item(), count + 1, device=x_0.device)[1:-1].to(x_0.dtype)


def pilot_variance(
    model: ScoreModel,
    cond: Any = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    intervals: int = INTERVALS,
) -> MeasuredVariance:
    """The variance measured on samples that the model draws itself.

    Costs 50 evaluations a sample to draw them, and `NUM_LEVELS` to measure.

    Args:
        model: what is sampled from.
        cond: what the model is conditioned on, as `fit_sampler` takes it.
        num_samples: of the pilot run; by default 256, or as many as hold 16,384 numbers.
        batch_size: samples at a time; by default as many as need little memory.
        intervals: of the values of D, with an error for each; 1 gives one number a level.

    Example:
        sample(model, Ancestral(pilot_variance(model)), 100, num_steps=25)
    """
    if num_samples is None:
        num_samples = max(NUM_SAMPLES, -(-NUMBERS // math.prod(model.shape)))
    require(num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    cond = condition.spread(cond, num_samples)
    x_0, _ = sample(model, SDEDPMSolver(), num_samples, cond=cond, batch_size=batch_size)
    return measure_variance(model, x_0, condition.to(cond, x_0.device), batch_size, intervals)

r"""The signal-to-noise ratio of a corrector, chosen by a pilot run.

A Langevin step that is too short repairs nothing. One that is too long adds noise of its own: its chain ends with the
variance of the noise too large by a share of snr^2. Which of the two matters more depends on the data, the network and
the grid. A chain that works leaves at every level what the forward process would have put there. So the pilot's samples
are noised again, and at levels along the grid the mean square of the estimated noise on the chain is compared with that
on the noised samples,

    mismatch = RMS over bands of the mean over a band's levels of
               log( E |eps_hat(x_t on the chain)|^2 / E |eps_hat(alpha x_0 + sigma z)|^2 ).

No data is needed. A band, a quarter of the levels, averages out the error of a few samples, and keeps what is
systematic. On networks of the digits the best is 0.16 with 249 predictor steps, where Song et al. 2021 found 0.16 for
CIFAR-10 by the quality of samples, and 0.25 with 99.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers.base import TableSampler
from samplers.sampling import sample
from scoresde import condition
from scoresde._batches import choose_batch_size
from scoresde.errors import require
from scoresde.models.split import SplitModel
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

CANDIDATES = (0.05, 0.1, 0.16, 0.25, 0.4)
NUM_LEVELS = 48
NUM_BANDS = 4


@torch.no_grad()
def mismatch(
    model: ScoreModel,
    sampler: TableSampler,
    grid: Tensor,
    num_samples: int = 16,
    cond: Any = None,
    batch_size: int | None = None,
) -> float:
    """How far the marginals of a sampler's chain are from those of its own samples, as above; 0 is best.

    Costs the sampler's evaluations along the grid and `NUM_LEVELS` more, of `num_samples` samples; the model is called
    with `batch_size` of them at a time.
    """
    model = SplitModel(model, choose_batch_size(batch_size, model.shape, model.device))
    every = max(1, len(sampler.table(model, grid)) // NUM_LEVELS)
    on_chain: list[tuple[Level, Tensor]] = []

    def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        if row % every == every - 1:
            on_chain.append((level, _mean_square_noise(x_t, x0_hat, level)))

    cond = condition.spread(cond, num_samples)
    x, _ = sample(model, sampler, num_samples, grid=grid, cond=cond, batch_size=num_samples, callback=watch)
    noise = Noise(1, torch.arange(num_samples, device=x.device))
    cond = condition.to(cond, x.device)
    ratios = []
    with model.eval_mode():
        for k, (level, chain) in enumerate(on_chain):
            x_t = level.alpha * x + level.sigma * noise.normal(k, model.shape, x.dtype)
            ratios.append(chain / _mean_square_noise(x_t, model.denoise_at(x_t, level, cond), level))
    bands = torch.stack(ratios).double().log().tensor_split(min(NUM_BANDS, len(ratios)))
    return torch.stack([band.mean() for band in bands]).square().mean().sqrt().item()


def _mean_square_noise(x_t: Tensor, x0_hat: Tensor, level: Level) -> Tensor:
    return ((x_t - level.alpha * x0_hat) / level.sigma).square().mean()


def choose_snr(
    model: ScoreModel,
    make: Callable[[float], TableSampler],
    grid: Tensor,
    cond: Any = None,
    num_samples: int = 16,
    candidates: Sequence[float] = CANDIDATES,
    batch_size: int | None = None,
) -> float:
    """The candidate with the smallest mismatch, found by going downhill from the middle one.

    Args:
        model: what is sampled from.
        make: the sampler for an snr, as `PredictorCorrector` is with its other settings.
        grid: where it steps.
        cond: what the model is conditioned on, as `fit_sampler` takes it.
        num_samples: of a pilot run.
        candidates: rising.
        batch_size: samples that the model is called with at a time; by default as many as need little memory.

    Example:
        snr = choose_snr(model, lambda snr: PredictorCorrector(snr=snr), uniform_log_snr(model.sde, 250))
    """
    require(len(candidates) >= 1, f"candidates={candidates!r}: need at least one")
    known: dict[int, float] = {}

    def value(i: int) -> float:
        if i not in known:
            known[i] = mismatch(model, make(candidates[i]), grid, num_samples, cond, batch_size)
        return known[i]

    best = len(candidates) // 2
    require(
        math.isfinite(value(best)),
        f"model: samples with snr={candidates[best]} are not finite; has training diverged?",
    )
    while better := [i for i in (best - 1, best + 1) if 0 <= i < len(candidates) and value(i) < value(best)]:
        best = min(better, key=value)
    return candidates[best]

r"""The corrections that a guided sampler needs: how many, and how long, found by a pilot run.

A guided score is at each noise level the score of some distribution, and Langevin steps with it draw from this one.
How long a step may be says the mean square of the noise estimate (`samplers.langevin`); how many are needed depends on
the weight of guidance, because the predictor between two levels leads away from their distributions. Whether samples x
have reached the distribution whose score is s can be seen without knowing it, from Stein's identity

    E[s(x) . (x - E x)] = -dim.

So the pilot runs along the grid with few corrections, then with more, until

    mismatch = sqrt( mean over levels of (1 + E[s . (x - E x)] / dim)^2 ),

less what the number of samples adds, is small. The identity sees whether samples lie too wide or too narrow, and not in
which of two distant modes they are.

Scores are taken as right at all noise levels. Those of a network are worst near the data: an error of D is divided by
sigma^2, and long steps follow it. With a network correct nothing at the smallest levels, lowest=0.05
(docs/guidance.md); the command line does so.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from typing import Any, Final, final

import torch
from torch import Tensor

from samplers.ancestral import Ancestral
from samplers.langevin import MeasuredSnr
from samplers.predictor_corrector import GUIDED_STEPS, NormPredictorCorrector, PredictorCorrector, guided_grid
from samplers.sampling import sample
from scoresde import condition
from scoresde._batches import choose_batch_size
from scoresde.errors import require
from scoresde.models.split import SplitModel
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

CORRECTIONS = {4: 0.4, 6: 0.3, 8: 0.25, 12: 0.2}  # at each level, with the snr of so many (benchmarks/guidance.py)
TOLERANCE = 0.06  # of the mismatch
REVISION = 1  # of what is found, for those who keep it
SCHEME: Final = "leimkuhler_matthews"
NUMBERS = 4096  # that the samples of a pilot run hold, at least
FEWEST_SAMPLES = 64


@torch.no_grad()
def pilot_corrector(
    model: ScoreModel,
    cond: Any = None,
    num_steps: int | None = None,
    corrector_steps: int | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    lowest: float = 0.0,
) -> PredictorCorrector:
    """The predictor-corrector sampler with which a guided model draws from what guidance promises.

    It costs the evaluations of the samplers that are tried, of the pilot's own samples.

    Args:
        model: a guided model, such as `ClassifierFreeGuidance`.
        cond: what the model is conditioned on, as `fit_sampler` takes it.
        num_steps: of the grid; by default the sampler's own, 60.
        corrector_steps: at each level; by default the smallest of 4, 6, 8 and 12 with a mismatch below 0.06.
        num_samples: of a pilot run; by default as many as hold 4096 numbers, and at least 64.
        batch_size: samples that the model is called with at a time; by default as many as need little memory.
        lowest: noise level below which nothing is corrected, in deviations of the data; 0.05 for a network.

    Example:
        guided = ClassifierFreeGuidance(model, 4.0)
        x = sample(guided, pilot_corrector(guided, cond=3, lowest=0.05), 100, cond=3).x
    """
    if num_samples is None:
        num_samples = max(FEWEST_SAMPLES, -(-NUMBERS // math.prod(model.shape)))
    require(num_samples >= 2, f"num_samples={num_samples}: need at least 2")
    require(corrector_steps is None or corrector_steps >= 1, f"corrector_steps={corrector_steps}: need at least 1")
    require(lowest >= 0, f"lowest={lowest}: need a noise level, or 0 to correct at all levels")
    cond = condition.spread(cond, num_samples)
    lowest = lowest * model.sigma_data
    grid = guided_grid(model, GUIDED_STEPS if num_steps is None else num_steps)
    corrected = grid[grid > 0]
    corrected = corrected[model.sde.noise_level(corrected) >= lowest]
    require(len(corrected) >= 3, f"num_steps={num_steps}: leaves too few levels to correct; take 10 or more")
    split = SplitModel(model, choose_batch_size(batch_size, model.shape, model.device))
    for count in CORRECTIONS if corrector_steps is None else (corrector_steps,):
        snr = CORRECTIONS[min(CORRECTIONS, key=lambda known: abs(known - count))]
        seen = _Seen()
        by_norm = NormPredictorCorrector(Ancestral(), snr, count, SCHEME)
        sample(split, by_norm, num_samples, grid=corrected, cond=cond, batch_size=num_samples, callback=seen)
        found = PredictorCorrector(Ancestral(), seen.snr(snr), count, scheme=SCHEME, lowest=lowest)
        if seen.mismatch() <= TOLERANCE:
            return found
    warnings.warn(
        f"pilot_corrector: with {count} corrections a step the mismatch is still {seen.mismatch():.2f}; take more "
        "steps or corrections, less guidance, or a model that was trained longer",
        stacklevel=2,
    )
    return found


@final
class _Seen:
    """What a pilot run shows at each level, from the callback of its evaluations."""

    def __init__(self) -> None:
        self._mean_squares: defaultdict[float, list[float]] = defaultdict(list)
        self._stein: dict[float, tuple[float, float]] = {}

    def __call__(self, row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        eps_hat = ((x_t - level.alpha * x0_hat) / level.sigma).double().flatten(1)
        x = x_t.double().flatten(1)
        at = level.log_snr.item()
        self._mean_squares[at].append(eps_hat.square().mean().item())
        product = 1 - (eps_hat / level.sigma * (x - x.mean(0))).mean(1)
        self._stein[at] = (product.mean().item(), product.var().item() / len(x))  # of the last evaluation at a level

    def snr(self, snr: float) -> MeasuredSnr:
        """The ratio of each level for steps of one snr by norms."""
        log_snr = sorted(self._mean_squares)
        mean_squares = [sum(self._mean_squares[at]) / len(self._mean_squares[at]) for at in log_snr]
        return MeasuredSnr(tuple(log_snr), tuple(snr / math.sqrt(mean_square) for mean_square in mean_squares))

    def mismatch(self) -> float:
        """How far samples are from Stein's identity, as above."""
        squares = [mean**2 - variance for mean, variance in self._stein.values()]
        return math.sqrt(max(0.0, sum(squares) / len(squares)))

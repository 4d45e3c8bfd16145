r"""The best isotropic variance of each reverse step, measured by a pilot run (Bao et al. 2022, Analytic-DPM).

It follows from the mean squared error of the denoiser at each noise level (`scoresde.reverse`), here of samples that
the model draws itself, or of data. No training is needed, and the result is a number a level: ancestral sampling with
it remains a table. The paper's E|eps_hat|^2 is (dim - E|eps - eps_hat|^2) for an exact model; what is measured here is
the second, with one fresh noise a sample and level.
"""

from __future__ import annotations

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
from scoresde.sde import Level

REVISION = 1  # of what is measured, for those who keep it
NUM_LEVELS = 64
NUM_SAMPLES = 256


@torch.no_grad()
def measure_variance(
    model: ScoreModel, x_0: Tensor, cond: Any = None, batch_size: int | None = None
) -> MeasuredVariance:
    """The variance that follows from the errors with which a model denoises some data.

    Costs `NUM_LEVELS` evaluations a sample.

    Args:
        model: what denoises.
        x_0: clean data in the model's units, `(B, *shape)`: a few thousand numbers or more.
        cond: what the model is conditioned on, one entry a sample, or None.
        batch_size: samples at a time; by default as many as need little memory.
    """
    check_data(model, x_0, cond)
    first, last = model.sde.span().log_snr
    log_snr = torch.linspace(first.item(), last.item(), NUM_LEVELS, dtype=torch.float64)
    levels = model.sde.level(model.sde.time(log_snr).clamp(model.sde.t_min, model.sde.t_max))
    total = torch.zeros(NUM_LEVELS, dtype=torch.float64, device=x_0.device)
    with model.eval_mode():
        for part in batches(len(x_0), choose_batch_size(batch_size, model.shape, model.device)):
            noise = Noise(1, torch.arange(part.start, part.stop, device=x_0.device))  # samples were drawn with seed 0
            given = condition.take(cond, part)
            for k in range(NUM_LEVELS):
                total[k] += _squared_error(model, x_0[part], levels[k], noise.normal(k, model.shape, x_0.dtype), given)
    share = total.cpu() / x_0.numel() * torch.exp(levels.log_snr)
    return MeasuredVariance(tuple(levels.log_snr.tolist()), tuple(share.tolist()))


def _squared_error(model: ScoreModel, x_0: Tensor, level: Level, eps: Tensor, cond: condition.Condition) -> Tensor:
    """The sum of |D - x_0|^2 over a batch, at a level `()`, float64."""
    narrow = level.to(x_0.device, x_0.dtype)
    x0_hat = model.denoise_at(narrow.alpha * x_0 + narrow.sigma * eps, narrow, cond)
    return (x0_hat - x_0).double().square().sum()


def pilot_variance(
    model: ScoreModel, cond: Any = None, num_samples: int = NUM_SAMPLES, batch_size: int | None = None
) -> MeasuredVariance:
    """The variance measured on samples that the model draws itself.

    Costs 50 evaluations a sample to draw them, and `NUM_LEVELS` to measure.

    Args:
        model: what is sampled from.
        cond: what the model is conditioned on, as `fit_sampler` takes it.
        num_samples: of the pilot run.
        batch_size: samples at a time; by default as many as need little memory.

    Example:
        sample(model, Ancestral(pilot_variance(model)), 100, num_steps=25)
    """
    require(num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    cond = condition.spread(cond, num_samples)
    x_0, _ = sample(model, SDEDPMSolver(), num_samples, cond=cond, batch_size=batch_size)
    return measure_variance(model, x_0, condition.to(cond, x_0.device), batch_size)

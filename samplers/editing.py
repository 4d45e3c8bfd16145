r"""Editing by noise and denoising (Meng et al. 2022, SDEdit).

Anything of a sample's shape, as a picture or a sketch, is noised to a level, x_t = alpha x_0 + sigma eps, and brought
back by a sampler from there. What is larger than the noise is kept, and what is smaller is made anew by the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samplers.base import Sampler, Samples
from samplers.sampling import joined, prepare
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, check_data


@torch.no_grad()
def edit(
    model: ScoreModel,
    sampler: Sampler,
    x_0: Tensor,
    noise_level: float,
    *,
    num_steps: int | None = None,
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Samples:
    """Samples near x_0, one for each of its entries.

    Args:
        model: what gives the score.
        sampler: how to go from the noise level to data.
        x_0: `(num_samples, *shape)`, in the model's units; repeat a picture for several edits of it.
        noise_level: sigma / alpha up to which it is noised, in the model's units. 0.5 to 2 deviations of the data keep
            the layout and change the detail.
        num_steps: steps of the sampler's grid from that level.
        cond: as of `sample`.
        seed: which noise.
        batch_size: samples at a time.

    Raises:
        UsageError: for a noise level outside the model's, or x_0 of another shape.
    """
    require(
        isinstance(model, ScoreModel),
        f"model of {type(model).__name__}: need a ScoreModel; NetworkScoreModel wraps one",
    )
    require(isinstance(sampler, Sampler), f"sampler={sampler!r}: need a sampler object, such as DDIM()")
    given = condition.from_values(cond, len(x_0))
    check_data(model, x_0, given)
    ends = model.sde.level(torch.tensor([model.sde.t_end, model.sde.t_max], dtype=torch.float64))
    lowest, highest = ends.noise_level.tolist()
    require(
        lowest < noise_level <= highest * (1 + 1e-6),
        f"noise_level={noise_level:g}: must lie between {lowest:g} and {highest:g}, the noise levels of samplers",
    )
    level = model.sde.at_noise_level(torch.tensor(noise_level, dtype=torch.float64))
    start = level.t.item()
    part = model.under(model.sde.restricted(model.sde.t_min, start))
    prepared = prepare(model, sampler, sampler.grid(part, num_steps))  # its times are those of the model
    drawn = []
    with model.eval_mode():
        for some in batches(len(x_0), choose_batch_size(batch_size, model.shape, model.device)):
            noise = Noise(seed, torch.arange(some.start, some.stop, device=model.device))
            clean = x_0[some].to(model.device, model.dtype)
            eps = noise.normal(0, model.shape, model.dtype)
            x_t = level.alpha.item() * clean + level.sigma.item() * eps
            own = condition.to(condition.take(given, some), model.device)
            drawn.append(prepared(x_t, noise, own))
    return joined(drawn)

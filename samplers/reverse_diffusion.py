r"""Reverse diffusion: the reverse SDE discretised as the forward one (Song et al. 2021, appendix E, equation 46).

The forward SDE goes from s to t exactly by x_t = r x_s + G z with

    r = alpha_t / alpha_s,        G^2 = sigma_t^2 - r^2 sigma_s^2.

Written as a step x_t = x_s + (r - 1) x_s + G z, its reversal takes drift and diffusion at t:

    x_s = x_t - (r - 1) x_t + G^2 score(x_t, t) + G z.

For a DDPM chain r = sqrt(1 - beta) and G^2 = beta; for VE G^2 = sigma_t^2 - sigma_s^2: Song et al.'s two cases. Here it
holds on any grid of any Gaussian path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.table import Table, denoiser_table
from scoresde.score_model import ScoreModel
from scoresde.sde import Level, transition


@final
@dataclass(frozen=True)
class ReverseDiffusion(StepSampler):
    """Song et al.'s reverse diffusion sampler. Weak order 1; one evaluation a step; independent noise.

    Each step adds the forward noise of its own interval, so one step from sigma = 50 would leave the sample at that
    noise. It needs at least four steps.
    """

    order = 1
    noise = "independent"
    min_steps = 4
    one_step = True
    default_num_steps = 500

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        ratio, std = transition(end, start)
        pull = (std / start.sigma) ** 2
        return denoiser_table(start, end, 2 - ratio - pull, pull * start.alpha, std)

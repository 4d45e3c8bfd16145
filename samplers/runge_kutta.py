r"""Runge-Kutta methods for the probability flow.

In u = x / alpha and r = sigma / alpha the probability flow of every Gaussian path is du/dr = (u - D) / r = eps_hat
(Song, Meng and Ermon 2021, equation 14; Karras et al. 2022, equation 4). Heun's method on it is a DDIM step followed by
a second one that replaces the slope at the start by the mean of both ends. As rows:

    stage   y = x_s' = alpha_s (x_t / alpha_t + (r_s - r_t) eps_t)
    step    x_s = y + alpha_s (r_s - r_t)/2 (eps_s - eps_t)

with h the noise. The second row needs no memory of x_t: the stage holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import TableSampler
from samplers.table import Table
from scoresde.sde import SDE, Level


@final
@dataclass(frozen=True)
class Heun(TableSampler):
    """Heun's method on the probability flow in sigma/alpha (Karras et al. 2022, algorithm 1, for any alpha).

    Strong order 2; two evaluations a step (one for the last, to clean data); no noise.
    """

    order = 2
    noise = "none"
    default_grid = staticmethod(grids.karras)
    default_num_steps = 20

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        rise = end.alpha * (end.noise_level - start.noise_level)

        def interleave(first: Tensor, second: Tensor) -> Tensor:
            return torch.stack([first, second], 1).flatten(0, 1)

        level = Level(*(interleave(*parts) for parts in zip(start, end, strict=True)))
        a = interleave(end.alpha / start.alpha, torch.ones_like(rise))
        b = interleave(torch.stack([rise, 0 * rise], 1), torch.stack([rise / 2, -rise / 2], 1))
        return Table(level, a, b, torch.zeros_like(a), -level.alpha / level.sigma, 1 / level.sigma)

"""Inpainting by projection, and RePaint, whose steps are taken several times."""

from dataclasses import dataclass

import torch

from samplers import Ancestral, StepSampler, denoiser_table, interleave, uniform_log_snr
from scoresde.sde import transition


def keep(known, mask, noise):
    """A projection: entries under the mask follow the known data's own noisy path."""
    stream = noise.stream("inpainting")

    def project(row, level, x):
        level = level.match_rank(x)
        eps = stream.normal(row, tuple(x.shape[1:]), x.dtype)
        return torch.where(mask, level.alpha * known + level.sigma * eps, x)

    return project


@dataclass(frozen=True)
class RePaint(StepSampler):
    """Ancestral steps, each taken `repeats` times: down, and up again by the forward process (Lugmayr et al. 2022)."""

    repeats: int = 5

    order = 0
    noise = "independent"
    min_steps = 1
    one_step = True
    default_num_steps = 50

    def default_grid(self, model, num_steps):
        return uniform_log_snr(model.sde, num_steps)

    def steps(self, model, start, end):
        down = Ancestral().steps(model, start, end)
        ratio, std = transition(end, start)
        noise = torch.sqrt((ratio * down.c) ** 2 + std**2)
        again = denoiser_table(start, start, ratio * down.a, ratio * down.b[:, 0], noise)
        return interleave([again] * (self.repeats - 1) + [down])

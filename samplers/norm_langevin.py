r"""Predictor-corrector sampling with Song et al.'s own Langevin step, sized by norms.

Song et al. 2021, algorithms 4 and 5, size the corrector's step by the mean norms over a batch of its noise and its
scores, e = 2 ratio^2 (snr |z| / |score|)^2, where ratio = alpha_t / alpha_s of the forward step from this level (1 for
VE, sqrt(1 - beta) on a DDPM chain). It adapts to scores of the wrong size; but it is not linear in the denoiser, so no
table, and a sample then depends on the others of its batch. `PredictorCorrector` is the same with steps sized by sigma.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import Sampler, StepSampler
from samplers.langevin import check_corrector
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.table import Callback
from samplers.table import run as run_table
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level, transition


@final
@dataclass(frozen=True)
class NormPredictorCorrector(Sampler):
    """A predictor's step (None: no predictor), then Langevin steps sized by norms, at every level after the first.

    Order 0; 1 + `corrector_steps` evaluations a step; independent noise; samples depend on their batch.
    """

    predictor: StepSampler | None = field(default_factory=ReverseDiffusion)
    snr: float = 0.16  # Song et al. 2021, appendix G, CIFAR-10
    corrector_steps: int = 1

    order = 0
    noise = "independent"
    default_grid = staticmethod(grids.uniform_log_snr)
    default_num_steps = 250

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.corrector_steps)

    def num_evaluations(self, sde: SDE, grid: Tensor) -> int:
        steps = len(grid) - 2 if grid[-1] == 0 else len(grid) - 1
        return steps * ((self.predictor is not None) + self.corrector_steps) + (len(grid) - 1 - steps)

    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        grid = grids.check_grid(model.sde, grid)
        levels = model.sde.level(grid[grid > 0])
        ratios = transition(levels.at(slice(1, None)), levels.at(slice(None, -1)))[0].tolist()
        on_device, row = levels.like(x_T), 0

        def evaluate(x_t: Tensor, level: Level) -> Tensor:
            x0_hat = model.denoise_at(x_t, level, cond)
            if callback is not None:
                callback(row, level, x_t, x0_hat)
            return x0_hat

        y = x_T
        for k, ratio in enumerate(ratios):
            if self.predictor is not None:
                step = self.predictor.steps(model.sde, levels.at(slice(k, k + 1)), levels.at(slice(k + 1, k + 2)))
                y = run_table(step, model, y, noise, cond, callback, first_row=row)
                row += len(step)
            level = on_device.at(k + 1)
            for _ in range(self.corrector_steps):
                score = (level.alpha * evaluate(y, level) - y) / level.sigma**2
                z = noise.normal(row + 1, tuple(y.shape[1:]), y.dtype)
                size = 2 * ratio**2 * (self.snr * _mean_norm(z) / _mean_norm(score)) ** 2
                y = y + size * score + torch.sqrt(2 * size) * z
                row += 1
        return evaluate(y, on_device.at(-1)) if grid[-1] == 0 else y


def _mean_norm(x: Tensor) -> Tensor:
    """Mean over the batch of the norms of the samples."""
    return x.flatten(1).norm(dim=1).mean()

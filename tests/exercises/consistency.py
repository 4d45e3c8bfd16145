"""Consistency distillation: the denoiser becomes the map from x_t to the end of its own path (Song et al. 2023)."""

import contextlib
from dataclasses import dataclass

import torch

from scoresde import Batch, Objective, ScoreModel


@dataclass(frozen=True)
class ConsistencyObjective(Objective):
    """|D(x_t, t) - D_average(x_s, s)|^2 with x_s one DDIM step of a teacher away from x_t, s < t.

    Attributes:
        teacher: the model whose paths are followed.
        num_levels: times, evenly spaced in log-SNR.
    """

    teacher: ScoreModel
    num_levels: int = 40

    def draw(self, model, batch, noise):
        return {"u": noise.stratified("times", model.dtype), "eps": noise.normal("eps", model.shape, model.dtype)}

    def at(self, model, batch: Batch, draws, averaged=contextlib.nullcontext):
        x_0 = model.codec.encode(batch.raw, model.dtype)
        first, last = model.sde.span().log_snr
        step = (draws["u"] * self.num_levels).floor()
        t, s = (model.sde.time(first + (last - first) * (step + k) / self.num_levels) for k in (0, 1))
        x_t = model.sde.diffuse(x_0, t, draws["eps"])
        with torch.no_grad():
            x0_hat, eps_hat = self.teacher.denoise(x_t, t, batch.cond), self.teacher.noise(x_t, t, batch.cond)
            x_s = model.sde.diffuse(x0_hat, s, eps_hat)
            with averaged():
                target = model.denoise(x_s, s, batch.cond)
        return (model.denoise(x_t, t, batch.cond) - target).flatten(1).square().mean(1)

r"""Thresholding: a denoiser kept within the range of the data.

A network's estimate of x_0 may leave the range that all data lie in, and under strong guidance it does. Clipping it
(static), or rescaling each sample whose values leave the range too often (dynamic: Saharia et al. 2022, section 2.3),
is a change of the model, so every sampler takes it: ScoreModel -> ScoreModel.

    static      D -> clip(D, low, high)
    dynamic     D -> c + clip(D - c, -s, s) w / s,        s = max(w, quantile of |D - c| over a sample's entries),

with c the middle and w half the width of the range. A quantile of 1 never clips and only rescales.
"""

from __future__ import annotations

import contextlib
import math
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.score_model import GridModel, ScoreModel
from scoresde.sde import Level


@final
class ThresholdedModel(ScoreModel):
    """A model whose denoiser is kept in [low, high].

    Args:
        model: the model.
        low, high: the range of the data in the model's units; numbers, or tensors that broadcast against a sample.
        quantile: None for static thresholding, or the quantile of the dynamic one, 0 < quantile <= 1 (0.995 is usual).
    """

    def __init__(
        self, model: ScoreModel, low: Tensor | float, high: Tensor | float, quantile: float | None = None
    ) -> None:
        like = model.like()
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (low, high))
        require(bool((low < high).all()), f"low={low.tolist()}, high={high.tolist()}: need low < high")
        require(quantile is None or 0 < quantile <= 1, f"quantile={quantile}: need 0 < quantile <= 1, or None")
        self.model, self.sde, self.shape = model, model.sde, model.shape
        self.low, self.high, self.quantile = low, high, quantile

    def _keep(self, x0_hat: Tensor) -> Tensor:
        if self.quantile is None:
            return torch.clamp(x0_hat, self.low, self.high)
        center, width = (self.low + self.high) / 2, (self.high - self.low) / 2
        relative = ((x0_hat - center) / width).flatten(1)
        place = math.ceil(self.quantile * relative.shape[1])  # torch.quantile takes 16 million numbers at most
        scale = relative.abs().kthvalue(place, dim=1, keepdim=True).values.clamp(min=1)
        return center + width * (relative.clamp(-scale, scale) / scale).view_as(x0_hat)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        return self._keep(self.model.denoise_at(x_t, level, cond))

    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        inner = self.model.on_grid(level, x)
        skip, out = inner.skip.tolist(), inner.out.tolist()

        def raw(k: int, x_t: Tensor, cond: Tensor | None) -> Tensor:
            return self._keep(torch.mul(x_t, skip[k]).add_(inner.raw(k, x_t, cond), alpha=out[k]))

        return GridModel(torch.zeros_like(inner.skip), torch.ones_like(inner.out), raw)

    def check_cond(self, cond: Tensor) -> None:
        self.model.check_cond(cond)

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return self.model.eval_mode()

    def like(self) -> Tensor:
        return self.model.like()

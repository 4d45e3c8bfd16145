r"""Thresholding: a denoiser kept within the range of the data.

A network's estimate of x_0 can leave the range of the data, and under strong guidance it does. The estimate is clipped
(static), or each sample is rescaled if too many of its values leave the range (dynamic: Saharia et al. 2022, section
2.3). Both change the model, not the sampler: ScoreModel -> ScoreModel.

    static      D -> clip(D, low, high)
    dynamic     D -> c + clip(D - c, -s, s) w / s,        s = max(w, quantile of |D - c| over a sample's entries),

with c the middle and w half the width of the range. A quantile of 1 never clips and only rescales.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.score_model import GridModel, ScoreModel, WrappedModel
from scoresde.sde import Level


@final
class ThresholdedModel(WrappedModel):
    """A model whose denoiser is kept in [low, high].

    Args:
        model: the model.
        low, high: the range of the data in the model's units; numbers, or tensors that broadcast against a sample.
        quantile: None for static thresholding; for dynamic thresholding 0 < quantile <= 1, usually 0.995.
    """

    def __init__(
        self, model: ScoreModel, low: Tensor | float, high: Tensor | float, quantile: float | None = None
    ) -> None:
        super().__init__(model)
        self.low = torch.as_tensor(low, dtype=model.dtype, device=model.device)
        self.high = torch.as_tensor(high, dtype=model.dtype, device=model.device)
        self.quantile = quantile
        require(
            bool((self.low < self.high).all()),
            f"low={self.low.tolist()}, high={self.high.tolist()}: need low < high",
        )
        require(quantile is None or 0 < quantile <= 1, f"quantile={quantile}: need 0 < quantile <= 1, or None")

    def _threshold(self, x0_hat: Tensor) -> Tensor:
        if self.quantile is None:
            return torch.clamp(x0_hat, self.low, self.high)
        center = (self.low + self.high) / 2
        width = (self.high - self.low) / 2
        relative = ((x0_hat - center) / width).flatten(1)
        place = math.ceil(self.quantile * relative.shape[1])  # torch.quantile takes 16 million numbers at most
        scale = relative.abs().kthvalue(place, dim=1, keepdim=True).values.clamp(min=1)
        return center + width * (relative.clamp(-scale, scale) / scale).view_as(x0_hat)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        return self._threshold(self.model.denoise_at(x_t, level, cond))

    def denoise_with_variance(self, x_t: Tensor, level: Level, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        x0_hat, v = self.model.denoise_with_variance(x_t, level, cond)
        return self._threshold(x0_hat), v

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        inner = self.model.on_grid(levels, like)
        c_skip = inner.c_skip.tolist()
        c_out = inner.c_out.tolist()

        def evaluate(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            return self._threshold(torch.mul(x_t, c_skip[k]).add_(inner.network(k, x_t, cond), alpha=c_out[k]))

        return GridModel(torch.zeros_like(inner.c_skip), torch.ones_like(inner.c_out), evaluate)

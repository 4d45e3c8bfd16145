"""Classifier-free guidance: D_null + scale (D - D_null), exact at scale 1."""

import torch

from scoresde import GridModel, WrappedModel


class GuidedModel(WrappedModel):
    """A model that is evaluated with and without its condition (Ho and Salimans 2022)."""

    def __init__(self, model, scale):
        super().__init__(model, calls=2)
        self.scale = scale

    def without(self, cond, x_t):
        return self.null_cond(cond, torch.ones(len(x_t), dtype=torch.bool, device=x_t.device))

    def denoise_at(self, x_t, level, cond=None):
        null = self.model.denoise_at(x_t, level, self.without(cond, x_t))
        return torch.lerp(null, self.model.denoise_at(x_t, level, cond), self.scale)

    def on_grid(self, levels, like):
        inner = self.model.on_grid(levels, like)

        def network(k, x_t, cond):
            null = inner.network(k, x_t, self.without(cond, x_t))
            return torch.lerp(null, inner.network(k, x_t, cond), self.scale)

        return GridModel(inner.c_skip, inner.c_out, network)

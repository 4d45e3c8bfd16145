"""Diffusion of words: an embedding as codec, trained with the network and a rounding loss (Li et al. 2022)."""

import contextlib
from dataclasses import dataclass, field

import torch
from torch import nn

from scoresde import Codec, DenoisingObjective, Network, Objective, register


@register
class EmbeddingCodec(nn.Module, Codec):
    """Token ids `(B, L)` as unit vectors `(B, L, width)`, and back by the nearest."""

    def __init__(self, num_tokens, width):
        super().__init__()
        self.num_tokens = num_tokens
        self.width = width
        self.table = nn.Parameter(torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(0)))

    def directions(self):
        return nn.functional.normalize(self.table, dim=1)

    def encode(self, raw, dtype=torch.float32):
        return (self.width**0.5 * self.directions()).to(dtype)[raw]

    def logits(self, x):
        return x @ self.directions().T.to(x.dtype)

    def decode(self, x):
        return self.logits(x).argmax(-1)

    def encoded_shape(self, raw_shape):
        return (*raw_shape, self.width)


@register
class SentenceNetwork(Network):
    """A network for `(B, length, width)`."""

    cond_dropout = 0.0

    def __init__(self, length, width, features=128):
        super().__init__()
        self.length = length
        self.width = width
        self.features = features
        inner = [nn.Linear(length * width + 1, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU()]
        self.layers = nn.Sequential(*inner, nn.Linear(features, length * width))

    def forward(self, x, c_noise, cond=None):
        return self.layers(torch.cat([x.flatten(1), c_noise[:, None]], 1)).view_as(x)

    def check_cond(self, cond):
        """Takes none, and ignores it."""

    def null_cond(self, cond, hidden):
        return cond


@dataclass(frozen=True)
class RoundingObjective(Objective):
    """Denoising, and the cross entropy of the words that the denoised state is rounded to."""

    denoising: Objective = field(default_factory=DenoisingObjective)

    def draw(self, model, batch, noise):
        return self.denoising.draw(model, batch, noise)

    def at(self, model, batch, draws, averaged=contextlib.nullcontext):
        x_0 = model.codec.encode(batch.raw, model.dtype)
        x0_hat = model.denoise(model.sde.diffuse(x_0, draws["t"], draws["eps"]), draws["t"], batch.cond)
        words = nn.functional.cross_entropy(
            model.codec.logits(x0_hat).flatten(0, 1), batch.raw.flatten(), reduction="none"
        )
        return self.denoising.at(model, batch, draws, averaged) + words.view(batch.raw.shape).mean(1)

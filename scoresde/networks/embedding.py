"""Conditioning of a network on the noise and on class labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require


class Conditioning(nn.Module):
    """Embeds the noise label c_noise `(B,)` and, for `num_classes` > 0, labels `(B,)`, into one vector `(B, width)`.

    The noise goes through cosines and sines of frequencies from 1/2 to 32: c_noise, a quarter of log(sigma/alpha),
    spans about [-2, 2]. A model with classes takes labels 0 .. num_classes - 1.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("frequencies", 2 ** torch.linspace(-1, 5, 32), persistent=False)
        self.noise = nn.Linear(64, width)
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.mix = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies * (math.pi / 2)
        embedding = self.noise(torch.cat([phase.cos(), phase.sin()], 1))
        if self.label is not None:
            require(cond is not None, f"cond: this network is class-conditional; give labels 0..{self.num_classes - 1}")
            embedding = embedding + self.label(cond)
        else:
            require(cond is None, "cond: this network was made without classes; leave it out")
        return F.silu(self.mix(F.silu(embedding)))

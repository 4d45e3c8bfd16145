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
    spans about [-2, 2]. A model with classes takes labels 0 .. num_classes - 1. With `label_dropout` > 0 the label
    num_classes means "none", and so does cond = None. Nothing is drawn here: who trains hides that share of the labels.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_classes: int = 0, label_dropout: float = 0.0) -> None:
        super().__init__()
        require(
            isinstance(num_classes, int) and num_classes >= 0,
            f"num_classes={num_classes}: need a whole number, 0 for a network without classes",
        )
        require(0 <= label_dropout < 1, f"label_dropout={label_dropout}: need 0 <= label_dropout < 1")
        require(
            label_dropout == 0 or num_classes > 0,
            f"label_dropout={label_dropout}: this network has no classes whose labels could be hidden; leave it at 0",
        )
        self.num_classes, self.label_dropout = num_classes, label_dropout
        self.register_buffer("frequencies", 2 ** torch.linspace(-1, 5, 32), persistent=False)
        self.noise = nn.Linear(64, width)
        self.label = nn.Embedding(num_classes + (label_dropout > 0), width) if num_classes else None
        self.mix = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies * (math.pi / 2)
        embedding = self.noise(torch.cat([phase.cos(), phase.sin()], 1))
        if self.label is not None:
            if cond is None and self.label_dropout > 0:
                cond = torch.full_like(c_noise, self.num_classes, dtype=torch.long)
            require(cond is not None, f"cond: this network is class-conditional; give labels 0..{self.num_classes - 1}")
            embedding = embedding + self.label(cond)
        else:
            require(cond is None, "cond: this network was made without classes; leave it out")
        return F.silu(self.mix(F.silu(embedding)))

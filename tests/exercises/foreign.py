"""A network as others publish it: it takes x_t as it is and a time from 0 to 999, and predicts the noise."""

import torch
from torch import nn

from scoresde import Network, register


@register
class ForeignNetwork(Network):
    """Predicts eps of vectors `(B, dim)` from sinusoids of 1000 steps."""

    cond_dropout = 0.0

    def __init__(self, dim, width=64):
        super().__init__()
        self.dim = dim
        self.width = width
        self.layers = nn.Sequential(nn.Linear(dim + 16, width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x, step, cond=None):
        frequencies = 1000 ** (-torch.arange(8, device=step.device) / 8)
        phase = step[:, None] * frequencies
        time = torch.cat([phase.sin(), phase.cos()], 1).to(x.dtype)
        return self.layers(torch.cat([x, time], 1))

    def check_cond(self, cond):
        """Takes none, and ignores it."""

    def null_cond(self, cond, hidden):
        return cond

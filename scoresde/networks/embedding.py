"""Conditioning of a network on the noise and on class labels."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.condition import Condition, describe
from scoresde.errors import UsageError, require
from scoresde.networks.base import Network


class Conditioning(nn.Module):
    """Embeds the noise label c_noise `(B,)` and, for `num_classes` > 0, labels `(B,)`, into one vector `(B, width)`.

    The noise is embedded by cosines and sines of pi/2 c_noise times 1/2 to 32. The default c_noise, log(sigma/alpha)/4,
    spans about [-2, 2]. The phases are computed in its type; bfloat16 would round them. A network with classes takes
    labels 0 .. num_classes - 1. With `label_dropout` > 0 the label num_classes means "none", and so does cond = None.
    """

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
        self.num_classes = num_classes
        self.has_null = label_dropout > 0
        self.noise = nn.Linear(64, width)
        self.label = nn.Embedding(num_classes + self.has_null, width) if num_classes else None
        self.mix = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Condition) -> Tensor:
        frequencies = 2 ** torch.linspace(-1, 5, 32, device=c_noise.device, dtype=c_noise.dtype)
        phase = c_noise[:, None] * frequencies * (math.pi / 2)
        embedding = self.noise(torch.cat([phase.cos(), phase.sin()], 1).to(self.noise.weight.dtype))
        if self.label is not None:
            if cond is None and self.has_null:
                cond = torch.full_like(c_noise, self.num_classes, dtype=torch.long)
            if not isinstance(cond, Tensor):
                raise UsageError(f"cond: {describe(cond)}; this network takes labels 0..{self.num_classes - 1}")
            embedding = embedding + self.label(cond.long())
        elif cond is not None:
            raise UsageError("cond: this network was made without classes; leave it out")
        return F.silu(self.mix(F.silu(embedding)))

    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` unless `cond` is labels that this network knows, or None if it needs none."""
        if self.num_classes == 0:
            require(cond is None, "cond: this network was made without classes (num_classes=0); leave it out")
            return
        if cond is None and self.has_null:
            return
        largest = self.num_classes - 1 + self.has_null
        need = f"need labels 0..{self.num_classes - 1}, one a sample"
        if self.has_null:
            need += f"; {self.num_classes} stands for none"
        if not isinstance(cond, Tensor) or cond.is_floating_point() or cond.ndim != 1:
            raise UsageError(f"cond: {describe(cond)}; {need}")
        low, high = (end.item() for end in cond.long().aminmax())
        if low < 0 or high > largest:
            raise UsageError(f"cond: labels from {low} to {high}; {need}")

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        """Labels with those of the `hidden` samples replaced by "none"."""
        require(
            self.has_null,
            "label_dropout=0: this network was trained with all labels and knows no label for none; train one with "
            "network.label_dropout=0.1",
        )
        if not isinstance(cond, Tensor):
            return torch.full_like(hidden, self.num_classes, dtype=torch.long)
        return cond.long().masked_fill(hidden, self.num_classes)


class LabelledNetwork(Network):
    """A network whose conditions are the labels that its `Conditioning` embeds.

    Attributes:
        conditioning: the embedding.
        num_classes: classes to condition on; 0 for none.
    """

    conditioning: Conditioning
    num_classes: int

    @final
    def check_cond(self, cond: Condition) -> None:
        self.conditioning.check_cond(cond)

    @final
    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return self.conditioning.null_cond(cond, hidden)

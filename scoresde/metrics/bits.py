r"""Bits per dimension, and what they are bits of.

Data of whole numbers have probabilities, a model of the flow has densities. Let the number x fill its unit interval
with u ~ q(u | x), |u| < 1/2; then by Jensen's inequality

    log P(x) = log int_interval p(x + u) du >= E_q[log p(x + u) - log q(u | x)]

(Theis et al. 2016, section 3.1; Ho et al. 2019, section 3.1), so that

    bits per dimension = -(log p(x + u) - log q(u | x)) / (dim ln 2)

bounds the bits that the model needs for a pixel from above. It holds for data of whole numbers alone, and depends on
their number of levels; where the model's units are (raw - center) / scale, a uniform q contributes log2(scale). u is
centred, so that the mean of the data stays where it was: 0 .. 16 become [-1/2, 16 1/2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.data.arrays import Scaling
from scoresde.errors import require


class Dequantization(ABC):
    """How a whole number fills its unit interval."""

    @abstractmethod
    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """u in (-1/2, 1/2) for a batch `(B, *)`, and log q(u) in nats `(B,)`."""


@final
@dataclass(frozen=True)
class UniformDequantization(Dequantization):
    """q = 1."""

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        u = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator) - 0.5
        return u, torch.zeros(len(like), dtype=torch.float64, device=like.device)


@final
@dataclass(frozen=True)
class TruncatedNormalDequantization(Dequantization):
    """q ~ exp(-u^2 / (2 std^2)) on the interval: less of the mass near its ends, where a smooth density errs."""

    std: float = 0.4

    def __post_init__(self) -> None:
        require(0 < self.std < math.inf, f"std={self.std}: must be positive and finite")

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        half = torch.tensor(0.5 / self.std, dtype=torch.float64)
        low, mass = torch.special.ndtr(-half).item(), (2 * torch.special.ndtr(half) - 1).item()
        share = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
        z = torch.special.ndtri(low + mass * share).clamp(-half.item(), half.item())
        log_q = -0.5 * z**2 - math.log(self.std * mass) - 0.5 * math.log(2 * math.pi)
        return (self.std * z).to(like.dtype), log_q.flatten(1).sum(1)


DEQUANTIZATIONS = {"uniform": UniformDequantization(), "truncated_normal": TruncatedNormalDequantization()}


def dequantize(
    x: Tensor, scaling: Scaling, how: Dequantization, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """x + u for whole numbers x in the model's units `(B, *)`, and log q(u | x) in those units, nats `(B,)`."""
    u, log_q = how.draw(x, generator)
    widths = scaling.change_to_model(torch.ones_like(x[0], dtype=torch.float64))
    return x + scaling.change_to_model(u), log_q - widths.log().sum()


def bits_per_dim(log_prob: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """-(log p - log q) / (dim ln 2), of nats `(B,)` twice."""
    return -(log_prob - log_q) / (dim * math.log(2))

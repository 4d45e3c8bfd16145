r"""Bits per dimension of integer data.

Integer data has probabilities, but a model of the flow has densities. Let the number x fill its unit interval with
u ~ q(u | x), |u| < 1/2. Then by Jensen's inequality

    log P(x) = log int_interval p(x + u) du >= E_q[log p(x + u) - log q(u | x)]

(Theis et al. 2016, section 3.1; Ho et al. 2019, section 3.1), so that the mean of

    bits per dimension = -(log p(x + u) - log q(u | x)) / (dim ln 2)

is an upper bound on the bits that the model needs for a pixel. It holds for integer data only, and depends on the
number of levels. In units (raw - center) / scale a uniform q contributes log2(scale). u is centred, so that the mean of
the data is unchanged: 0 .. 16 become [-1/2, 16 1/2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.codec import Codec, Scaling
from scoresde.errors import UsageError, require


class Dequantization(ABC):
    """A distribution q(u | x) with which a whole number fills its unit interval."""

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
    """q proportional to exp(-u^2 / (2 std^2)), with less mass near the ends, where a smooth density errs."""

    std: float = 0.4

    def __post_init__(self) -> None:
        require(0 < self.std < math.inf, f"std={self.std}: must be positive and finite")

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        half = torch.tensor(0.5 / self.std, dtype=torch.float64)
        low = torch.special.ndtr(-half).item()
        mass = (2 * torch.special.ndtr(half) - 1).item()
        share = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
        z = torch.special.ndtri(low + mass * share).clamp(-half.item(), half.item())
        log_q = -0.5 * z**2 - math.log(self.std * mass) - 0.5 * math.log(2 * math.pi)
        return (self.std * z).to(like.dtype), log_q.flatten(1).sum(1)


DEQUANTIZATIONS = {"uniform": UniformDequantization(), "truncated_normal": TruncatedNormalDequantization()}


def dequantize(
    raw: Tensor, codec: Codec, how: Dequantization, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """raw + u in the model's units `(B, *)`, and log q(u | raw) in those units, nats `(B,)`.

    Raises:
        UsageError: for a codec that is not a scaling, because its effect on densities is unknown.
    """
    if not isinstance(codec, Scaling):
        raise UsageError(f"codec={type(codec).__name__}: bits of whole numbers need a Scaling of the data")
    u, log_q = how.draw(codec.encode(raw), generator)
    widths = codec.encode_change(torch.ones_like(u[0], dtype=torch.float64))
    return codec.encode(raw + u), log_q - widths.abs().log().sum()


def bits_per_dim(log_prob: Tensor, log_q: Tensor, dim: int) -> Tensor:
    """-(log p - log q) / (dim ln 2), of log_prob and log_q in nats, `(B,)` each."""
    return -(log_prob - log_q) / (dim * math.log(2))

r"""Noise as an argument: a function of (seed, sample index, interval).

A sampler asks for the noise of an interval, and gets the same numbers whatever the batch that a sample sits in, the
process that draws it, or the order of the questions. So sample i of a seed is one fixed picture; no random state is
kept, and none is touched.

The numbers come from the counter-based generator Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"): a keyed bijection of 128-bit counters, here (element block, interval, sample index) under the key `seed`,
written in integer tensor operations, so that it runs on every device with the same bits. Pairs of 32-bit words become
pairs of normal numbers by the Box-Muller transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, table 2
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words; the four counters broadcast, and so do the outputs."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # the 64-bit products wrap around as signed numbers; their bits are right, and masks drop the sign's copies
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@final
@dataclass(frozen=True)
class Noise:
    """Standard normal numbers for a batch of samples.

    Attributes:
        seed: the key, 0 <= seed < 2^64.
        indices: which samples these are, int64 `(B,)`, on the device where the noise is wanted.
    """

    seed: int
    indices: Tensor

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed={self.seed}: need 0 <= seed < 2**64")

    def normal(self, interval: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The draw of an interval (0 is the prior's, k + 1 that of row k): `(B, *shape)`, independent N(0, 1)."""
        dim, device = math.prod(shape), self.indices.device
        block = torch.arange((dim + 3) // 4, device=device)[None]
        low, high = (self.indices & _MASK)[:, None], (self.indices >> 32)[:, None]
        words = philox((block, torch.full_like(block, interval), low, high), (self.seed & _MASK, self.seed >> 32))
        normals = [*_box_muller(words[0], words[1], dtype), *_box_muller(words[2], words[3], dtype)]
        return torch.stack(normals, -1).flatten(1)[:, :dim].reshape(len(self.indices), *shape)


def _box_muller(first: Tensor, second: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent normals from two uniform 32-bit words; the half keeps the logarithm away from zero."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    radius = torch.sqrt(-2 * torch.log((first.to(work) + 0.5) * 2.0**-32))
    angle = second.to(work) * (2 * math.pi * 2.0**-32)
    return (radius * torch.cos(angle)).to(dtype), (radius * torch.sin(angle)).to(dtype)

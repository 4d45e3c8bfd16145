r"""The divergence of a flow: the trace of the denoiser's Jacobian, exactly or by probes.

For a random v with E[v v^T] = I the product v . J v is an unbiased estimate of tr J (Hutchinson 1990). With entries of
+1 or -1 (Rademacher) the diagonal of J adds no variance. What is left, 2 sum_{i != j} J_ij^2 for a symmetric J, is
drawn anew in every step: a sum over n steps then has an error that is about sqrt(n) below that of one probe for all
steps. Reverse mode serves D and all products of one evaluation; on a U-Net forward mode takes longer
(`benchmarks/divergence.py`; benchmarks/NOTES.md lists the estimators that were tried and left out).

Orthogonal probes are rows of a Hadamard matrix, drawn without replacement, times common random signs: their mean over
all rows is the trace itself, so that m of M rows leave the share 1 - m/M of the variance of m independent probes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.errors import require
from scoresde.noise import Noise

Products = Callable[[Tensor], Tensor]
"""Directions v `(P, B, *)` to the products v J v, entry by entry `(P, B, dim)`."""


class Divergence(ABC):
    """A way to find the diagonal of the Jacobian J of a batch."""

    @abstractmethod
    def diagonals(self, products: Products, like: Tensor, noise: Noise, step: int) -> Tensor:
        """Estimates `(P, B, dim)` whose mean over P is the diagonal; their sum over dim estimates the trace.

        Args:
            products: gives v J v.
            like: the batch `(B, *)`.
            noise, step: random probes are a function of these.
        """

    @abstractmethod
    def variance_left(self, dim: int) -> float:
        """The variance of the estimates' mean, as a share of that of one."""


@final
@dataclass(frozen=True)
class Exact(Divergence):
    """The trace itself: one product for each entry of a sample, `chunk` at a time."""

    chunk: int = 8

    def __post_init__(self) -> None:
        require(self.chunk >= 1, f"chunk={self.chunk}: need at least 1")

    def diagonals(self, products: Products, like: Tensor, noise: Noise, step: int) -> Tensor:
        dim = math.prod(like.shape[1:])
        parts = []
        for part in batches(dim, self.chunk):
            count = part.stop - part.start
            unit = torch.zeros(count, 1, dim, dtype=like.dtype, device=like.device)
            unit[torch.arange(count), 0, part.start + torch.arange(count)] = 1
            parts.append(products(unit.reshape(count, 1, *like.shape[1:]).expand(-1, *like.shape)).sum(0))
        return torch.stack(parts).sum(0)[None]

    def variance_left(self, dim: int) -> float:
        return 0.0


@final
@dataclass(frozen=True)
class Probes(Divergence):
    """Random probes, fresh in every step.

    Attributes:
        num_probes: for each sample and step.
        orthogonal: rows of a Hadamard matrix instead of independent signs; in as many as there are, the trace itself.
    """

    num_probes: int = 1
    orthogonal: bool = False

    def __post_init__(self) -> None:
        require(self.num_probes >= 1, f"num_probes={self.num_probes}: need at least 1")

    def diagonals(self, products: Products, like: Tensor, noise: Noise, step: int) -> Tensor:
        return products(self._probes(like, noise, step))

    def _probes(self, like: Tensor, noise: Noise, step: int) -> Tensor:
        shape = tuple(like.shape[1:])
        count = self.num_probes
        if not self.orthogonal:
            return _signs(noise.normals(range(1 + step * count, 1 + (step + 1) * count), shape, like.dtype))
        dim = math.prod(shape)
        rows = _power_of_two(dim)
        require(count <= rows, f"num_probes={count}: of {dim} entries there are {rows} that are orthogonal")
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(noise.seed % 2**62 + step))[:count]
        signs = _signs(noise.normal(1 + step, shape, like.dtype))
        return _hadamard(chosen, dim).to(like).reshape(count, 1, *shape) * signs

    def variance_left(self, dim: int) -> float:
        return (1 - self.num_probes / _power_of_two(dim) if self.orthogonal else 1.0) / self.num_probes


def _signs(normals: Tensor) -> Tensor:
    return torch.where(normals < 0, -1.0, 1.0).to(normals)


def _power_of_two(dim: int) -> int:
    """The smallest power of two that is at least `dim`."""
    return 1 << (dim - 1).bit_length()


def _hadamard(rows: Tensor, dim: int) -> Tensor:
    """Rows of Sylvester's matrix, cut to `dim` columns: -1 to the number of bits that row and column share."""
    shared = rows[:, None] & torch.arange(dim)
    parity = torch.zeros_like(shared)
    while bool(shared.any()):
        parity ^= shared & 1
        shared >>= 1
    return 1 - 2 * parity

"""Mean and covariance of features, a part at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require


@functools.lru_cache(maxsize=1)
def _upper(size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the upper triangle of a matrix."""
    rows, columns = torch.triu_indices(size, size)
    return rows, columns


@final
@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features, float64; those of two sets together are their sum `+`.

    Attributes:
        count: how many samples.
        mean: `(F,)`.
        upper: the upper triangle of the scatter, the sum of (f - mean)(f - mean)^T, `(F (F + 1) / 2,)`: of many groups
            it matters that it takes half the memory.
    """

    count: int
    mean: Tensor
    upper: Tensor

    @staticmethod
    def of(features: Tensor) -> Moments:
        """The moments of `(N, F)`."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return Moments(len(features), mean, (centred.mT @ centred)[_upper(len(mean))])

    @staticmethod
    def exact(mean: Tensor, covariance: Tensor) -> Moments:
        """Those of a distribution that is known."""
        return Moments(2, mean, covariance[_upper(len(mean))])

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        rows, columns = _upper(len(shift))
        between = (shift * (self.count * other.count / count))[rows] * shift[columns]
        return Moments(count, self.mean + shift * (other.count / count), between.add_(self.upper).add_(other.upper))

    @property
    def covariance(self) -> Tensor:
        """`(F, F)`, the unbiased one."""
        require(self.count > 1, f"count={self.count}: a covariance needs two samples or more")
        size = len(self.mean)
        rows, columns = _upper(size)
        full = self.upper.new_empty(size, size)
        full[rows, columns] = self.upper
        full[columns, rows] = self.upper
        return full / (self.count - 1)


def total_moments(parts: Iterable[Moments], taken: Iterable[float]) -> Moments:
    """The moments of the sets that are taken (1, not 0), together."""
    kept = [part for part, one in zip(parts, taken, strict=True) if one]
    return functools.reduce(Moments.__add__, kept)


def group_moments(chunks: Iterable[Tensor], groups: Tensor, num_groups: int) -> list[Moments]:
    """The moments of each group of the samples of a stream.

    Args:
        chunks: `(n, F)` each; together `(N, F)`.
        groups: the group of each sample, `(N,)`; none is empty.
        num_groups: how many there are.
    """
    found: list[Moments | None] = [None] * num_groups
    first = 0
    for chunk in chunks:
        own = groups[first : first + len(chunk)]
        first += len(chunk)
        for group in own.unique().tolist():
            part = Moments.of(chunk[own == group])
            known = found[group]
            found[group] = part if known is None else known + part
    assert first == len(groups)
    return [part for part in found if part is not None]

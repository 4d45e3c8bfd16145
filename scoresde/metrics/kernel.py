"""Distances by kernels: sums over pairs of samples, kept by groups so that intervals cost nothing more.

Of X = {x_i} and Y = {y_j} and a kernel k, the squared maximum mean discrepancy is estimated without bias by the mean of
k over pairs of X, plus that over pairs of Y, less twice that over pairs (x, y); a sample is not paired with itself
(Gretton et al. 2012, eq. 3). It is 0 on average for equal distributions, and may be below 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.metrics.resampling import Statistic

ROWS = 512  # of a matrix of pairs at a time

Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, F), (m, F) -> (n, m)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / F + 1)^3, that of the kernel Inception distance (Binkowski et al. 2018, section 4)."""
    return (x @ y.mT / x.shape[1] + 1) ** 3


def negative_distance(x: Tensor, y: Tensor) -> Tensor:
    """-|x - y|: the discrepancy is the energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013)."""
    return -distances(x, y)


def gaussian(bandwidth: float) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2))."""
    return lambda x, y: torch.exp(-distances(x, y).square() / (2 * bandwidth**2))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances `(n, m)` of rows, float64 so that those of close rows keep their digits."""
    return torch.cdist(x.double(), y.double())


def median_distance(x: Tensor, limit: int = 1000) -> float:
    """The median distance of pairs of samples, of the first `limit`: the usual bandwidth (Gretton et al. 2012)."""
    part = x[:limit]
    pairs = torch.ones(len(part), len(part)).triu(1).bool()
    return distances(part, part)[pairs].median().item()


class Sums(NamedTuple):
    """Sums of a kernel over pairs by the groups of the two samples, and the numbers of pairs, `(G, H)` each."""

    totals: Tensor
    counts: Tensor

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean over pairs of the groups that `first` `(G,)` and `second` `(H,)` take."""
        return (first @ self.totals @ second) / (first @ self.counts @ second)


def group_sums(x: Tensor, y: Tensor, groups: tuple[Tensor, Tensor], kernel: Kernel, same: bool = False) -> Sums:
    """The sums of two sets.

    Args:
        x, y: `(N, F)` and `(M, F)`.
        groups: of their samples, `(N,)` and `(M,)`.
        kernel: of two samples.
        same: whether the sets are one; a sample is then not paired with itself.
    """
    one_hot = [torch.nn.functional.one_hot(group).double() for group in groups]
    totals = torch.zeros(one_hot[0].shape[1], one_hot[1].shape[1], dtype=torch.float64)
    x = x.double()
    y = y.double()
    for rows in batches(len(x), ROWS):
        values = kernel(x[rows], y)
        if same:
            index = torch.arange(rows.start, rows.stop)
            values[index - rows.start, index] = 0.0
        totals += one_hot[0][rows].mT @ (values @ one_hot[1])
    sizes = [part.sum(0) for part in one_hot]
    counts = torch.outer(*sizes)
    return Sums(totals, counts - torch.diag(sizes[0]) if same else counts)


def discrepancy(first: Tensor, second: Tensor, groups: tuple[Tensor, Tensor], kernel: Kernel) -> Statistic:
    """The squared maximum mean discrepancy of `(N, F)` and `(M, F)`, of which groups are taken."""
    own = group_sums(first, first, (groups[0], groups[0]), kernel, same=True)
    other = group_sums(second, second, (groups[1], groups[1]), kernel, same=True)
    across = group_sums(first, second, groups, kernel)
    return lambda a, b: (own.mean(a, a) + other.mean(b, b) - 2 * across.mean(a, b)).item()


def kernel_distance(first: Tensor, second: Tensor, kernel: Kernel = cubic) -> float:
    """The squared maximum mean discrepancy of features `(N, F)` and `(M, F)` over all pairs.

    Published kernel Inception distances are means over subsets of 1,000 samples, with the same expectation.
    """
    one = torch.ones(1, dtype=torch.float64)
    groups = tuple(torch.zeros(len(part), dtype=torch.long) for part in (first, second))
    return discrepancy(first, second, (groups[0], groups[1]), kernel)(one, one)

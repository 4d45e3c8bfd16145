"""Whether samples are copies of training data: are they nearer to them than new data are?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.metrics.kernel import ROWS, distances, group_sums
from scoresde.metrics.resampling import Statistic


def nearest_distances(x: Tensor, train: Iterable[Tensor]) -> Tensor:
    """The distance of each of `(N, F)` to its nearest neighbour in a stream of `(m, F)` each, `(N,)`, float64."""
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for chunk in train:
        for rows in batches(len(x), ROWS):
            nearest[rows] = torch.minimum(nearest[rows], distances(x[rows], chunk).amin(1))
    return nearest


def nearer_than_held_out(samples: Tensor, held_out: Tensor, groups: tuple[Tensor, Tensor]) -> Statistic:
    """The probability that a sample is nearer to the training data than held-out data are.

    It is 1/2 for samples of the data's distribution, and 1 for copies: the statistic of Mann and Whitney 1947 of
    nearest distances, as in the test of Meehan, Chaudhuri and Dasgupta 2020.

    Args:
        samples: nearest distances of the samples, `(N,)`.
        held_out: nearest distances of held-out data, `(M,)`.
        groups: of both.
    """

    def nearer(a: Tensor, b: Tensor) -> Tensor:
        return (a < b.mT).double() + 0.5 * (a == b.mT).double()

    sums = group_sums(samples[:, None], held_out[:, None], groups, nearer)
    return lambda a, b: sums.mean(a, b).item()


def copies(samples: Tensor, held_out: Tensor, level: float = 0.01) -> float:
    """The share of samples that are nearer to the training data than all but a share `level` of the held-out data."""
    return (samples < held_out.quantile(level)).double().mean().item()

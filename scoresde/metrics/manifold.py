"""Which samples lie where real ones do, and which real ones have samples near: quality and variety told apart.

The balls of a set have a radius each, the distance of a sample to its k-th nearest neighbour in the set.

    precision   share of the samples that lie in a ball of the real ones          Kynkaanniemi et al. 2019, k = 3
    recall      share of the real ones that lie in a ball of the samples
    density     balls of the real ones in which a sample lies, over k, on average      Naeem et al. 2020, k = 5
    coverage    share of the real ones whose ball has a sample in it
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.errors import require
from scoresde.metrics.kernel import ROWS, distances

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


class Manifolds(NamedTuple):
    """Of each sample and each real one what the four measures are means of, float64.

    Attributes:
        precision, density: of the samples, `(N,)`.
        recall, coverage: of the real ones, `(M,)`.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def manifolds(
    samples: Tensor,
    real: Tensor,
    precision_neighbours: int = PRECISION_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> Manifolds:
    """Compares features of samples `(N, F)` with those of real ones `(M, F)`.

    Raises:
        UsageError: for a set that has no more samples than neighbours are asked for.
    """
    most = max(precision_neighbours, density_neighbours)
    for name, part in (("samples", samples), ("real", real)):
        require(len(part) > most, f"{name} of shape {tuple(part.shape)}: need more than {most} of them")
    samples, real = samples.double(), real.double()
    of_real = _radii(real, (precision_neighbours, density_neighbours))
    of_samples = _radii(samples, (precision_neighbours,))
    precision, density, nearest = [], [], torch.full((len(real),), torch.inf, dtype=torch.float64)
    recall = torch.zeros(len(real), dtype=torch.bool)
    for rows in batches(len(samples), ROWS):
        far = distances(samples[rows], real)
        precision.append((far <= of_real[0]).any(1))
        density.append((far <= of_real[1]).double().sum(1) / density_neighbours)
        recall |= (far <= of_samples[0][rows, None]).any(0)
        nearest = torch.minimum(nearest, far.amin(0))
    covered = nearest <= of_real[1]
    return Manifolds(torch.cat(precision).double(), recall.double(), torch.cat(density), covered.double())


def _radii(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """The distance of each sample to its k-th nearest other one, `(N,)`, for each k."""
    found = []
    for rows in batches(len(x), ROWS):
        far = distances(x[rows], x)
        index = torch.arange(rows.start, rows.stop)
        far[index - rows.start, index] = torch.inf
        found.append(far.topk(max(neighbours), largest=False).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1] for k in neighbours]

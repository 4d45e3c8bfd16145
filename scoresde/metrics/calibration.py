r"""Whether posterior samples are what they claim to be (simulation-based calibration).

Draw x from the data, measure it, and draw K samples of p(x | y). If they are from the posterior, x is exchangeable with
them. So the rank of x among them is uniform on 0 .. K, for every function of them (Talts et al. 2018). Two kinds are
looked at:

    along       <v, .> for random directions v: the truth lies between the samples, in the right place
    distances   the distance to the mean of the others: the truth is as unusual as the samples are. A region of
                nominal mass is the samples nearest to their mean, as for multivariate rank histograms (Gneiting et al.
                2008).

Intervals of nominal 90 % are the central ranks, regions the lower ones. With K = 19 both hold 18 of 20 ranks: exactly
90 %.

The energy score E|X - x| - E|X - X'| / 2 judges calibration and sharpness together: its mean is smallest for the
posterior (Gneiting and Raftery 2007). It is what methods are chosen by.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde.errors import require

DIRECTIONS = 32


@final
class Ranks(NamedTuple):
    """Ranks of truths among their samples, 0 .. num_samples.

    Attributes:
        along: `(cases, directions)`, of random linear functions.
        distances: `(cases,)`, of distances to the mean of the others.
        num_samples: K.
    """

    along: Tensor
    distances: Tensor
    num_samples: int


@final
class Coverage(NamedTuple):
    """The share of truths in regions of some nominal mass, and its standard error over cases."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} ({100 * self.error:.1f}) %"


def ranks(truth: Tensor, samples: Tensor, seed: int = 0) -> Ranks:
    """The ranks of truths `(cases, *shape)` among samples `(cases, K, *shape)`.

    Ties, as of coordinates that a measurement fixes, are broken at random.

    Args:
        truth: what was measured.
        samples: of the posterior of each measurement.
        seed: of directions and ties.
    """
    require(
        samples.shape[:1] + samples.shape[2:] == truth.shape and samples.shape[1] >= 2,
        f"samples of shape {tuple(samples.shape)}: need (cases, K, *shape) with 2 or more for truths "
        f"{tuple(truth.shape)}",
    )
    generator = torch.Generator().manual_seed(seed)
    everything = torch.cat([truth[:, None], samples], 1).double().cpu().flatten(2)  # (cases, K + 1, D)
    directions = torch.randn(everything.shape[2], DIRECTIONS, generator=generator, dtype=torch.float64)
    count = samples.shape[1]
    total = everything.sum(1, keepdim=True)
    distances = torch.linalg.vector_norm(everything - (total - everything) / count, dim=2)
    return Ranks(_rank(everything @ directions, generator), _rank(distances, generator), count)


def _rank(values: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of the first of `(cases, K + 1, ...)` among the others."""
    first = values[:, :1]
    others = values[:, 1:]
    scale = values.abs().amax(1, keepdim=True)
    equal = (others - first).abs() <= 1e-9 * scale
    lower = ((others < first) & ~equal).sum(1)
    ties = equal.sum(1)
    return lower + (torch.rand(ties.shape, generator=generator) * (ties + 1)).long()


def interval_coverage(found: Ranks, nominal: float = 0.9) -> Coverage:
    """Of central intervals along random directions."""
    ends = found.num_samples + 1
    outside = round((1 - nominal) / 2 * ends)
    inside = (found.along >= outside) & (found.along < ends - outside)
    return _coverage(inside.double().mean(1))


def region_coverage(found: Ranks, nominal: float = 0.9) -> Coverage:
    """Of the samples nearest to their mean."""
    return _coverage((found.distances < round(nominal * (found.num_samples + 1))).double())


def _coverage(inside: Tensor) -> Coverage:
    """From the share of each case that is inside."""
    cases = len(inside)
    value = inside.mean().item()
    error = inside.std().item() / math.sqrt(cases) if cases > 1 else math.nan
    # the error of no case outside is not 0
    return Coverage(value, max(error, 0.5 / cases))


def histogram(found: Ranks) -> tuple[Tensor, Tensor]:
    """Shares of each rank, `(K + 1,)`: along directions, and of distances."""
    length = found.num_samples + 1
    along = torch.bincount(found.along.flatten(), minlength=length) / found.along.numel()
    return along, torch.bincount(found.distances, minlength=length) / len(found.distances)


def energy_score(truth: Tensor, samples: Tensor) -> Tensor:
    """Of each case, `(cases,)`: mean |X - x| - mean |X - X'| / 2 over pairs of different samples."""
    x = truth.double().flatten(1)[:, None]
    each = samples.double().flatten(2)
    count = each.shape[1]
    apart = torch.cdist(each, each).sum((1, 2)) / (count * (count - 1))
    return torch.linalg.vector_norm(each - x, dim=2).mean(1) - 0.5 * apart

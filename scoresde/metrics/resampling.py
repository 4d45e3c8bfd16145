"""95 % intervals of measures of samples, from their values over halves of the samples.

Each set is divided at random into groups of equal size, and the groups, again and again, into two halves A and B
(half-sampling: Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans, chapter 8). To second order a
measure v of many samples is a linear function of what is random in them and a square. The halves depart from the whole
in opposite directions and by as much as the whole departs from infinitely many samples. So

    d = (v_A - v_B) / 2        has the linear part, and the cross terms of the square;
    s = (v_A + v_B) / 2 - v    has the square alone;
    bias = mean(s),   variance = var(d) - var(s), at least var(s),

because the cross terms have twice the variance of the square. v - bias is an extrapolation in 1/n to infinitely many
samples, and the interval around it is one of their value. If the variance of d were taken as it is, intervals of
distances between almost equal distributions would be too wide by a factor of up to 1.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SPLITS = 32
COVERAGE = 0.95

Statistic = Callable[[Tensor, Tensor], float]  # of which groups of the first, and of the second set are taken: 1 or 0


class Estimate(NamedTuple):
    """A measure of samples, and what it says of infinitely many.

    Attributes:
        value: the measure of the samples as they are.
        extrapolated: the value of infinitely many, without the bias that few samples cause.
        low, high: the ends of the interval in which that value lies with probability 0.95.
    """

    value: float
    extrapolated: float
    low: float
    high: float


def number_of_groups(count: int, num_features: int) -> int:
    """Groups of so many samples, an even number: 32, or 16 if their covariances are large, and no smaller than two."""
    return min(32 if num_features <= 256 else 16, 2 * (count // 4))


def choose_groups(count: int, num_groups: int, seed: int = 0) -> Tensor:
    """The group of each of some samples, `(count,)`: at random, of equal sizes up to one."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    groups = torch.empty(count, dtype=torch.long)
    groups[order] = torch.arange(count) % num_groups
    return groups


def estimate(
    statistic: Statistic,
    num_groups: tuple[int, int],
    lowest: float = -torch.inf,
    *,
    cheaper: Statistic | None = None,
    num_splits: int = SPLITS,
) -> Estimate:
    """A measure with its interval.

    Args:
        statistic: the measure, of which groups are taken, `(G,)` and `(H,)`, float64.
        num_groups: G and H, even.
        lowest: the smallest value that the measure can have.
        cheaper: a measure that varies as much, for the halves.
        num_splits: how often the groups are split.
    """
    from scipy.stats import t

    everything = [torch.ones(num, dtype=torch.float64) for num in num_groups]
    value = statistic(*everything)
    of_halves = cheaper or statistic
    whole = value if cheaper is None else of_halves(*everything)
    generator = torch.Generator().manual_seed(0)
    halves = []
    for _ in range(num_splits):
        one = [_half(num, generator) for num in num_groups]
        halves.append([of_halves(*one), of_halves(*(1 - half for half in one))])
    first, second = torch.tensor(halves, dtype=torch.float64).unbind(1)
    odd = (first - second) / 2
    even = (first + second) / 2 - whole
    variance = max(odd.square().mean() - even.var(), even.var()).item()
    freedom = 1 / (1 / (min(num_groups) - 1) + 1 / num_splits)
    half_width = float(t.ppf((1 + COVERAGE) / 2, freedom)) * variance**0.5
    extrapolated = max(lowest, value - even.mean().item())
    return Estimate(value, extrapolated, max(lowest, extrapolated - half_width), extrapolated + half_width)


def _half(num_groups: int, generator: torch.Generator) -> Tensor:
    """Half of the groups, ones among zeros, `(num_groups,)`."""
    taken = torch.zeros(num_groups, dtype=torch.float64)
    taken[torch.randperm(num_groups, generator=generator)[: num_groups // 2]] = 1.0
    return taken

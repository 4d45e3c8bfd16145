"""Measures of two sets of samples by their features, each with its interval.

    fid        Frechet distance, of all samples, a part at a time
    kid        kernel distance, 0 on average for equal distributions
    pr         precision and recall
    dc         density and coverage
    is         Inception score, of the first set alone
    sw2        sliced Wasserstein-2 distance
    c2st       how often a classifier tells the sets apart, 1/2 for equal distributions
    energy     energy distance
    mmd        maximum mean discrepancy of a Gaussian kernel
    classwise  kernel and Frechet distances of each class

What compares pairs takes at most `PAIRWISE` samples of each set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import UsageError, require, unknown_name
from scoresde.metrics.features.sets import FeatureSet
from scoresde.metrics.frechet import frechet_of_moments
from scoresde.metrics.inception_score import inception_score
from scoresde.metrics.kernel import Kernel, cubic, discrepancy, gaussian, median_distance, negative_distance
from scoresde.metrics.manifold import manifolds
from scoresde.metrics.moments import group_moments, total_moments
from scoresde.metrics.nearest import copies, nearer_than_held_out, nearest_distances
from scoresde.metrics.resampling import Estimate, Statistic, choose_groups, estimate, number_of_groups
from scoresde.metrics.sliced import sliced_distance
from scoresde.metrics.two_sample import told_apart

PAIRWISE = 10_000
FEWEST = 16  # samples in a set
FEW_PROJECTIONS = 32  # of a sliced distance of halves

Measures = dict[str, Estimate]


class Pair(NamedTuple):
    """Two sets with their groups."""

    sets: tuple[FeatureSet, FeatureSet]
    groups: tuple[Tensor, Tensor]
    num_groups: tuple[int, int]

    @classmethod
    def of(cls, *sets: FeatureSet) -> Pair:
        numbers = [number_of_groups(len(each), each.num_features) for each in sets]
        groups = [choose_groups(len(each), num, seed) for each, num, seed in zip(sets, numbers, (0, 1), strict=True)]
        return cls((sets[0], sets[1]), (groups[0], groups[1]), (numbers[0], numbers[1]))

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        return self.sets[0].features(), self.sets[1].features()

    def estimate(self, statistic: Statistic, lowest: float = -torch.inf, cheaper: Statistic | None = None) -> Estimate:
        return estimate(statistic, self.num_groups, lowest, cheaper=cheaper)


def compare(first: FeatureSet, second: FeatureSet, metrics: Sequence[str] = ("fid", "kid")) -> Measures:
    """Measures of the first set beside the second, which is the real one, by the names that tables print.

    Args:
        first: features of samples.
        second: features of real samples.
        metrics: names of the list above.

    Raises:
        UsageError: for sets of different tags, too few samples, or a metric that they do not allow.
    """
    check_comparable(first, second)
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("metric", name, METRICS)
    found: Measures = {}
    for name in metrics:
        sets = (first, second) if name in STREAMED else (first.subset(PAIRWISE), second.subset(PAIRWISE))
        found |= METRICS[name](Pair.of(*sets))
    return found


def check_comparable(first: FeatureSet, second: FeatureSet) -> None:
    """Raises `UsageError` for sets of different features, or of too few samples."""
    require(
        first.tag == second.tag,
        f"features: {first.source} has {first.tag!r}, {second.source} has {second.tag!r}; numbers of different "
        "features cannot be compared",
    )
    for each in (first, second):
        require(len(each) >= FEWEST, f"{each.source}: {len(each)} samples; a comparison needs at least {FEWEST}")


def require_enough(metric: str, *sets: FeatureSet) -> None:
    """Raises `UsageError` if a Frechet distance cannot be taken: a covariance needs more samples than features."""
    for each in sets:
        require(
            len(each) > each.num_features,
            f"metric={metric!r}: {len(each)} samples ({each.source}); a Frechet distance in {each.num_features} "
            f"features needs more than {each.num_features}; take kid",
        )


def copying(samples: FeatureSet, held_out: FeatureSet, train: FeatureSet) -> tuple[Estimate, float]:
    """Whether samples are nearer to the training data than held-out data are: the probability that one is (1/2 if
    nothing is copied), and the share of them that are nearer than all but 1 % of the held-out data.

    Raises:
        UsageError: for sets of different tags, or too few samples.
    """
    for each in (samples, held_out):
        check_comparable(each, train)
    near = [each.subset(PAIRWISE) for each in (samples, held_out)]
    pair = Pair.of(*near)
    far = [nearest_distances(each, train.chunks()) for each in pair.features]
    return pair.estimate(nearer_than_held_out(far[0], far[1], pair.groups)), copies(far[0], far[1])


def _fid(pair: Pair) -> Measures:
    require_enough("fid", *pair.sets)
    first, second = (
        group_moments(each.chunks(), groups, num)
        for each, groups, num in zip(pair.sets, pair.groups, pair.num_groups, strict=True)
    )

    def distance(a: Tensor, b: Tensor) -> float:
        return frechet_of_moments(total_moments(first, a.tolist()), total_moments(second, b.tolist()))

    return {"Frechet distance": pair.estimate(distance, 0.0)}


def _discrepancy(name: str, kernel: Callable[[Tensor], Kernel]) -> Callable[[Pair], Measures]:
    """A measure by a kernel, which may depend on the real features."""

    def measure(pair: Pair) -> Measures:
        first, second = pair.features
        return {name: pair.estimate(discrepancy(first, second, pair.groups, kernel(second)))}

    return measure


def _mean(values: Tensor, groups: Tensor, side: int) -> Statistic:
    """The mean of a number of each sample of one of the sets."""
    sizes = torch.bincount(groups).double()
    totals = torch.zeros_like(sizes).index_add_(0, groups, values)
    return lambda *taken: (taken[side] @ totals / (taken[side] @ sizes)).item()


def _precision(pair: Pair) -> Measures:
    found = manifolds(*pair.features)
    return {
        "precision": pair.estimate(_mean(found.precision, pair.groups[0], 0)),
        "recall": pair.estimate(_mean(found.recall, pair.groups[1], 1)),
    }


def _density(pair: Pair) -> Measures:
    found = manifolds(*pair.features)
    return {
        "density": pair.estimate(_mean(found.density, pair.groups[0], 0)),
        "coverage": pair.estimate(_mean(found.coverage, pair.groups[1], 1)),
    }


def _inception_score(pair: Pair) -> Measures:
    samples = pair.sets[0]
    head = samples.head
    if head is None:
        raise UsageError(f"metric='is': features {samples.tag!r} have no classifier")
    return {"Inception score": pair.estimate(inception_score(map(head, samples.chunks()), pair.groups[0]), 1.0)}


def _sliced(pair: Pair) -> Measures:
    whole = sliced_distance(*pair.features, pair.groups)
    cheaper = sliced_distance(*pair.features, pair.groups, FEW_PROJECTIONS)
    return {"sliced Wasserstein-2 distance": pair.estimate(whole, 0.0, cheaper)}


def _told_apart(pair: Pair) -> Measures:
    count = min(len(each) for each in pair.sets)
    equal = Pair.of(*(each.subset(count) for each in pair.sets))
    right = told_apart(*equal.features)
    sides = [_mean(values, groups, side) for side, (values, groups) in enumerate(zip(right, equal.groups, strict=True))]
    return {"classifier's accuracy": equal.estimate(lambda a, b: (sides[0](a, b) + sides[1](a, b)) / 2)}


def _classwise(pair: Pair) -> Measures:
    """Kernel and Frechet distances of the samples of each class; the latter if there are enough of each."""
    labels = [each.labels for each in pair.sets]
    if labels[0] is None or labels[1] is None:
        raise UsageError("metric='classwise': the samples have no classes")
    known = [set(each.unique().tolist()) for each in labels if each is not None]
    missing = known[0] ^ known[1]
    require(not missing, f"metric='classwise': class {min(missing, default=0)} is in one of the sets alone")
    found: Measures = {}
    for label in sorted(known[0]):
        of_class = [each.subset(PAIRWISE, label) for each in pair.sets]
        for each in of_class:
            require(
                len(each) >= FEWEST,
                f"metric='classwise': {len(each)} samples of class {label} ({each.source}); need at least {FEWEST}",
            )
        own = Pair.of(*of_class)
        found |= {f"{name}, class {label}": value for name, value in METRICS["kid"](own).items()}
        if all(len(each) > each.num_features for each in of_class):
            found |= {f"{name}, class {label}": value for name, value in _fid(own).items()}
    return found


STREAMED = ("fid", "is", "classwise")
METRICS: dict[str, Callable[[Pair], Measures]] = {
    "fid": _fid,
    "kid": _discrepancy("kernel distance", lambda _: cubic),
    "pr": _precision,
    "dc": _density,
    "is": _inception_score,
    "sw2": _sliced,
    "c2st": _told_apart,
    "energy": _discrepancy("energy distance", lambda _: negative_distance),
    "mmd": _discrepancy("maximum mean discrepancy", lambda real: gaussian(median_distance(real))),
    "classwise": _classwise,
}

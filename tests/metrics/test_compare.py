"""Measures of two sets of features, by name."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics import FeatureSet, compare, frechet_distance, kernel_distance, sliced_wasserstein
from scoresde.metrics.compare import METRICS


def features(count, seed, shift=0.0, tag="normal", dim=4, labels=None):
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift
    return FeatureSet.of(x, tag, f"set {seed}", labels, head=lambda f: f)


FIRST = features(300, 1, labels=torch.arange(300) % 3)
SECOND = features(200, 2, 0.4, labels=torch.arange(200) % 3)


def test_every_metric_has_an_interval_around_what_it_extrapolates_to():
    found = compare(FIRST, SECOND, list(METRICS))
    assert all(each.low <= each.extrapolated <= each.high for each in found.values())
    x, y = FIRST.features(), SECOND.features()
    assert found["Frechet distance"].value == pytest.approx(frechet_distance(x, y), rel=1e-8)
    assert found["kernel distance"].value == pytest.approx(kernel_distance(x, y), rel=1e-8)
    assert found["sliced Wasserstein-2 distance"].value == pytest.approx(sliced_wasserstein(x, y), rel=1e-8)
    for label in range(3):
        one, other = (each.subset(label=label).features() for each in (FIRST, SECOND))
        value = found[f"kernel distance, class {label}"].value
        assert value == pytest.approx(kernel_distance(one, other), rel=1e-8)
        assert found[f"Frechet distance, class {label}"].value == pytest.approx(frechet_distance(one, other), rel=1e-8)


def test_equal_sets_are_not_told_apart():
    found = compare(features(2000, 5), features(2000, 6), ["fid", "kid", "energy", "mmd", "sw2", "c2st"])
    for name, truth in (("kernel distance", 0.0), ("energy distance", 0.0), ("maximum mean discrepancy", 0.0)):
        assert found[name].low <= truth <= found[name].high
    assert found["Frechet distance"].low < 1e-3
    assert found["Frechet distance"].extrapolated < 0.5 * found["Frechet distance"].value
    assert found["classifier's accuracy"].value == pytest.approx(0.5, abs=0.03)


def test_numbers_do_not_depend_on_the_parts_that_features_come_in():
    whole = compare(FIRST, SECOND, ["fid", "is", "kid"])
    for size in (1, 7, 64):
        parts = FeatureSet(
            list(FIRST.features().split(size)), len(FIRST), 4, FIRST.tag, "parts", FIRST.labels, FIRST.head
        )
        for name, found in compare(parts, SECOND, ["fid", "is", "kid"]).items():
            assert tuple(found) == pytest.approx(tuple(whole[name]), rel=1e-9, abs=1e-12)


def test_a_subset_is_always_the_same_and_keeps_labels():
    part = FIRST.subset(50)
    assert len(part) == 50
    assert torch.equal(part.features(), FIRST.subset(50).features())
    for row, label in zip(part.features(), part.labels, strict=True):
        place = (FIRST.features() == row).all(1).nonzero().item()
        assert FIRST.labels[place] == label


MISTAKES = {
    "tags": ((FIRST, features(200, 2, tag="other")), ["kid"], r"set 1 has 'normal', set 2 has 'other'.*compared"),
    "few": ((features(15, 1), SECOND), ["kid"], r"set 1: 15 samples; a comparison needs at least 16"),
    "fewer than features": (
        (features(30, 1, dim=30), features(200, 2, dim=30)),
        ["fid"],
        r"metric='fid': 30 samples \(set 1\); a Frechet distance in 30 features needs more than 30; take kid",
    ),
    "metric": ((FIRST, SECOND), ["fidd"], r"unknown metric 'fidd': did you mean 'fid'"),
    "no classes": ((features(99, 1), SECOND), ["classwise"], r"metric='classwise': the samples have no classes"),
    "a class is missing": (
        (features(99, 1, labels=torch.arange(99) % 2), SECOND),
        ["classwise"],
        r"metric='classwise': class 2 is in one of the sets alone",
    ),
    "few of a class": (
        (features(40, 1, labels=torch.arange(40) % 3), SECOND),
        ["classwise"],
        r"metric='classwise': 14 samples of class 0 \(set 1\); need at least 16|13 samples",
    ),
    "no classifier": (
        (FeatureSet.of(FIRST.features(), "normal"), SECOND),
        ["is"],
        r"metric='is': features 'normal' have no classifier",
    ),
}


@pytest.mark.parametrize(("sets", "metrics", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(sets, metrics, message):
    with pytest.raises(UsageError, match=message):
        compare(*sets, metrics)


def test_features_that_are_no_numbers_are_refused():
    broken = torch.randn(20, 3)
    broken[4, 1] = torch.nan
    with pytest.raises(UsageError, match="ours: 1 of 20 samples have features that are NaN or infinite"):
        FeatureSet.of(broken, "normal", "ours")
    with pytest.raises(UsageError, match=r"ours: features of shape \(20,\); need \(samples, features\)"):
        FeatureSet.of(broken[:, 0], "normal", "ours")

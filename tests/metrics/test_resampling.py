"""Intervals by half-sampling."""

import pytest
import torch

from scoresde.metrics.resampling import choose_groups, estimate, number_of_groups

GROUPS = 32


def mean_of_groups(x, groups, side=0):
    totals = torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, groups, x)
    sizes = torch.bincount(groups).double()
    return lambda *taken: (taken[side] @ totals / (taken[side] @ sizes)).item()


def draws(count, repetitions=300):
    for seed in range(repetitions):
        yield torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covered(statistic, truth, count=320):
    """The share of the intervals that hold the truth; of 300, 0.95 has a standard error of 0.013."""
    groups = choose_groups(count, GROUPS)
    found = [estimate(statistic(x, groups), (GROUPS, GROUPS)) for x in draws(count)]
    return sum(each.low <= truth <= each.high for each in found) / len(found), found


def test_groups_are_even_and_equal():
    for count, features, expected in ((10_000, 64, 32), (10_000, 1280, 16), (40, 2, 20), (16, 2, 8)):
        assert number_of_groups(count, features) == expected
    sizes = torch.bincount(choose_groups(103, 32))
    assert sizes.min() == 3
    assert sizes.max() == 4
    assert not torch.equal(choose_groups(103, 32, 0), choose_groups(103, 32, 1))


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    share, found = covered(mean_of_groups, 0.0)
    assert 0.91 <= share <= 0.985
    width = sum(each.high - each.low for each in found) / len(found)
    assert width == pytest.approx(2 * 2.13 / 320**0.5, rel=0.1)  # t of 16 degrees of freedom


def test_a_biased_number_is_extrapolated():
    """The square of a mean has the bias 1/n; where the mean is 0 it is all of it, and the interval still holds 0."""

    def square(x, groups):
        mean = mean_of_groups(x, groups)
        return lambda *taken: mean(*taken) ** 2

    share, found = covered(square, 0.0)
    assert share >= 0.92
    plain = sum(each.value for each in found) / len(found)
    extrapolated = sum(each.extrapolated for each in found) / len(found)
    assert plain == pytest.approx(1 / 320, rel=0.3)
    assert abs(extrapolated) < 0.2 * plain
    share, found = covered(lambda x, groups: square(x + 0.5, groups), 0.25)
    assert 0.91 <= share <= 0.985


def test_bounds_are_kept_and_a_cheaper_number_can_stand_in():
    groups = choose_groups(320, GROUPS)
    x = next(draws(320)) * 0.1
    mean = mean_of_groups(x, groups)
    found = estimate(mean, (GROUPS, GROUPS), 1.0)
    assert found.low == found.extrapolated == 1.0 < found.high
    assert found.value == pytest.approx(x.mean().item())
    offset = estimate(mean, (GROUPS, GROUPS), cheaper=lambda *taken: mean(*taken) + 5)
    assert offset == pytest.approx(estimate(mean, (GROUPS, GROUPS)))

"""The classifier two-sample test."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics.two_sample import told_apart


def normal(count, seed, shift=0.0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) + shift


def test_equal_sets_cannot_be_told_apart_and_distant_ones_can():
    even = torch.cat(told_apart(normal(400, 0), normal(400, 1)))
    assert abs(even.mean() - 0.5) < 3 * 0.5 / 800**0.5
    assert torch.cat(told_apart(normal(100, 0), normal(100, 1, 8.0))).mean() > 0.98
    # N(0, I) against N(m, I): the best rule is right with the probability Phi(|m| / 2)
    best = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(3**0.5 / 2)).item()
    found = torch.cat(told_apart(normal(1500, 2), normal(1500, 3, 1.0))).mean().item()
    assert found == pytest.approx(best, abs=0.03)


def test_both_sets_weigh_the_same():
    first, second = told_apart(normal(300, 0), normal(60, 1))
    assert len(first) == len(second) == 60
    with pytest.raises(UsageError, match=r"second of shape \(9, 3\): need 10 samples"):
        told_apart(normal(50, 0), normal(9, 1))

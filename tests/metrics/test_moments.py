"""Moments that are summed a part at a time."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics.frechet import frechet_distance, frechet_of_moments
from scoresde.metrics.moments import Moments, group_moments, total_moments


def features(count, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64) @ mix + shift


@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_a_stream_has_the_moments_of_the_whole(size):
    x = features(300, shift=1e4)  # a mean far above the deviation
    groups = torch.arange(300) % 4
    parts = group_moments(x.split(size), groups, 4)
    total = total_moments(parts, [1, 1, 1, 1])
    assert total.count == 300
    assert torch.allclose(total.mean, x.mean(0), rtol=1e-13)
    assert torch.allclose(total.covariance, torch.cov(x.mT), rtol=1e-9)
    half = total_moments(parts, [1, 0, 0, 1])
    own = x[(groups == 0) | (groups == 3)]
    assert half.count == len(own)
    assert torch.allclose(half.covariance, torch.cov(own.mT), rtol=1e-9)


def test_a_distance_of_moments_is_that_of_the_features():
    first, second = features(400, 1), features(300, 2, shift=0.3)
    expected = frechet_distance(first, second)
    assert frechet_of_moments(Moments.of(first), Moments.of(second)) == pytest.approx(expected, rel=1e-10)


def test_gaussians_have_the_closed_form():
    """tr (C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of matrices that commute: the sum of (s_1 - s_2)^2."""
    axes = torch.linalg.qr(features(5, 3)).Q
    deviations = torch.tensor([[1.0, 2.0, 0.1, 3.0, 0.5], [2.0, 2.0, 1.0, 0.3, 0.5]], dtype=torch.float64)
    means = torch.tensor([[0.0] * 5, [1.0, 0.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    first, second = (
        Moments.exact(mean, axes @ torch.diag(std**2) @ axes.mT) for mean, std in zip(means, deviations, strict=True)
    )
    expected = 5.0 + (deviations[0] - deviations[1]).square().sum().item()
    assert frechet_of_moments(first, second) == pytest.approx(expected, rel=1e-8)


def test_one_sample_has_no_covariance():
    with pytest.raises(UsageError, match="count=1: a covariance needs two"):
        _ = Moments.of(torch.ones(1, 3)).covariance

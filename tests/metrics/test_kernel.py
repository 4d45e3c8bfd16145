"""Distances by kernels, against sums that are written out and against expectations."""

import pytest
import torch

from scoresde.metrics.kernel import (
    cubic,
    discrepancy,
    gaussian,
    group_sums,
    kernel_distance,
    median_distance,
    negative_distance,
)


def normal(count, dim=4, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("kernel", [cubic, negative_distance, gaussian(0.7)])
def test_the_sum_written_out(kernel):
    x, y = normal(9), normal(7, seed=1, shift=0.3)
    k_xx, k_yy, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)
    off = [k.sum() - k.diagonal().sum() for k in (k_xx, k_yy)]
    expected = off[0] / (9 * 8) + off[1] / (7 * 6) - 2 * k_xy.mean()
    assert kernel_distance(x, y, kernel) == pytest.approx(expected.item(), rel=1e-10)


def test_groups_leave_out_what_is_not_taken():
    x, y = normal(12), normal(12, seed=1, shift=0.3)
    groups = torch.arange(12) % 4
    statistic = discrepancy(x, y, (groups, groups), cubic)
    taken = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    kept = groups % 2 == 0
    assert statistic(taken, taken) == pytest.approx(kernel_distance(x[kept], y[kept]), rel=1e-10)
    assert group_sums(x, x, (groups, groups), cubic, same=True).counts.sum() == 12 * 11


def test_equal_distributions_have_the_distance_zero_on_average():
    values = torch.tensor([kernel_distance(normal(60, seed=k), normal(50, seed=1000 + k)) for k in range(200)])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert (values < 0).any()


def test_the_energy_distance_of_two_gaussians():
    """In one dimension, 2 E|x - y| - E|x - x'| - E|y - y'| of N(0, 1) and N(m, 1), by the mean of |N(m, 2)|."""
    shift = 1.5
    root = 2**0.5

    def mean_of_absolute(m):
        z = torch.tensor(m / root, dtype=torch.float64)
        normal = torch.distributions.Normal(0.0, 1.0)
        return 2 * root * normal.log_prob(z).exp() + m * (2 * normal.cdf(z) - 1)

    expected = (2 * mean_of_absolute(shift) - 2 * mean_of_absolute(0.0)).item()
    values = torch.tensor(
        [kernel_distance(normal(400, 1, k), normal(400, 1, 500 + k, shift), negative_distance) for k in range(40)]
    )
    assert values.mean().item() == pytest.approx(expected, abs=4 * values.std().item() / 40**0.5)


def test_the_median_distance_is_that_of_pairs():
    assert median_distance(torch.tensor([[0.0], [1.0], [3.0]])) == 2.0

"""The Frechet distance against closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from scoresde import UsageError
from scoresde.metrics import frechet_distance


def features(num, dim, seed, device, shift=0.0):
    """Correlated features of very different variances."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, dim).double()
    return (torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mix + shift).to(device)


def with_moments(mean, covariance, device):
    """Eight points per axis whose sample mean and covariance are exactly the given ones."""
    dim, num = len(mean), 4 * len(mean)
    white = torch.linalg.qr(features(num, dim + 1, 0, "cpu").index_fill(1, torch.tensor([0]), 1.0)).Q[:, 1:]
    root = torch.linalg.cholesky(covariance)  # white has columns of unit norm that sum to 0
    return (mean + (num - 1) ** 0.5 * white @ root.mT).to(device)


def test_closed_form_for_known_covariances(device):
    """With diagonal covariances: |m_1 - m_2|^2 + sum (s_1 - s_2)^2."""
    means = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
    stds = torch.tensor([[1.0, 0.1, 3.0], [2.0, 0.5, 3.0]], dtype=torch.float64)
    sets = [with_moments(m, torch.diag(s**2), device) for m, s in zip(means, stds, strict=True)]
    expected = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    assert frechet_distance(*sets) == pytest.approx(expected.item(), rel=1e-12)


def test_a_rotation_costs_what_it_must(device):
    """N(0, diag(a, b)) and the same turned by a right angle: 2 (a + b) - 4 sqrt(a b)."""
    first = with_moments(torch.zeros(2).double(), torch.diag(torch.tensor([4.0, 0.25])).double(), device)
    assert frechet_distance(first, first.flip(1)) == pytest.approx(2 * 4.25 - 4 * 1.0, rel=1e-12)


@pytest.mark.parametrize(("num", "other", "dim"), [(500, 300, 6), (40, 50, 20)])
def test_against_the_matrix_root_of_scipy(num, other, dim, device):
    first, second = features(num, dim, 1, device), features(other, dim, 2, device, shift=0.5)
    a, b = (np.cov(part.cpu().numpy(), rowvar=False) for part in (first, second))
    difference = (first.mean(0) - second.mean(0)).square().sum().item()
    expected = difference + np.trace(a + b - 2 * sqrtm(a @ b).real)
    # a root that is not symmetric keeps about half of the digits
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)


def test_symmetric_and_zero_on_itself(device):
    first, second = features(100, 5, 1, device), features(80, 5, 2, device, shift=1.0)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-12)
    size = first.var(0).sum().item()
    assert abs(frechet_distance(first, first)) < 1e-12 * size
    assert abs(frechet_distance(first, first.flip(0))) < 1e-12 * size  # no order of samples
    assert frechet_distance(first, first + 2.0) == pytest.approx(4.0 * 5, rel=1e-9)


def test_fewer_samples_than_features(device):
    """Singular covariances; the trace of the root from the eigenvalues of C_1^(1/2) C_2 C_1^(1/2)."""
    first, second = features(5, 12, 1, device), features(7, 12, 2, device)
    a, b = (torch.cov(part.mT) for part in (first, second))
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    # roots of eigenvalues that are rounding: sqrt(1e-16) of the largest
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-6)
    assert abs(frechet_distance(first, first)) < 1e-12 * a.trace().item()


def test_float32_features_are_summed_in_float64(device):
    first = features(2000, 4, 1, device, shift=1000.0).float()  # a mean far above the deviation
    second = features(2000, 4, 2, device, shift=1000.0).float()
    assert frechet_distance(first, second) == frechet_distance(first.double(), second.double())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((5,), (5, 2), r"first of shape \(5,\)"),
        ((5, 2), (5, 2, 1), r"second of shape \(5, 2, 1\)"),
        ((1, 2), (5, 2), r"first of shape \(1, 2\)"),
        ((5, 2), (5, 3), r"\(5, 3\)"),
    ],
)
def test_bad_shapes_are_refused(first, second, message):
    with pytest.raises(UsageError, match=message):
        frechet_distance(torch.zeros(first), torch.zeros(second))

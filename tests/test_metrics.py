"""Metrics against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from scoresde import VPSDE, EDMParametrization, GaussianMixture, UsageError
from scoresde.data import ArrayData, Scaling, load
from scoresde.metrics import (
    DEQUANTIZATIONS,
    TruncatedNormalDequantization,
    UniformDequantization,
    VariationalDequantization,
    bits_per_dim,
    dequantize,
    frechet_distance,
    judge,
    sliced_wasserstein,
    train_classifier,
    train_dequantization,
)
from tests.analytic import network_model


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


def test_sliced_wasserstein_of_a_shift_is_its_share_along_a_line(device):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    shift = torch.tensor([0.3, -0.1, 0.7], dtype=torch.float64, device=device)
    expected = (shift.square().sum() / 3).sqrt().item()  # the mean of (shift . direction)^2
    assert sliced_wasserstein(x, x + shift, 20_000) == pytest.approx(expected, rel=0.02)
    assert sliced_wasserstein(x, x.flip(0)) < 1e-12


def test_sliced_wasserstein_of_unequal_numbers_is_that_of_the_quantile_functions(device):
    x, y = torch.tensor([[0.0], [1.0]], device=device), torch.tensor([[0.0], [0.5], [1.0]], device=device)
    # on [0, 1/3] both 0; [1/3, 1/2] 0 and 1/2; [1/2, 2/3] 1 and 1/2; then both 1
    assert sliced_wasserstein(x, y) == pytest.approx((1 / 3 * 0.25) ** 0.5, rel=1e-6)


def test_bits_of_a_uniform_model_are_the_logarithm_of_the_levels(device):
    scaling = Scaling(center=8.0, scale=8.0)
    raw = torch.randint(0, 17, (50, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(device)
    x = scaling.to_model(raw, torch.float64)
    for how in DEQUANTIZATIONS.values():
        spread, log_q = dequantize(x, scaling, how, torch.Generator(device).manual_seed(2))
        change = scaling.to_raw(spread) - raw
        assert change.abs().max() <= 0.5
        assert abs(change.mean().item()) < 4 * 0.29 / 800**0.5
        log_p = torch.full((50,), -16 * math.log(17 / 8), dtype=torch.float64, device=device)  # even on 17/8
        bits = bits_per_dim(log_p, log_q, 16).mean().item()
        exact = math.log2(17)
        assert bits >= exact - 1e-9  # a bound
        assert bits < exact + (1e-9 if isinstance(how, UniformDequantization) else 0.5)


def test_the_density_of_a_truncated_normal_is_one_over_its_interval(device):
    how = TruncatedNormalDequantization(0.3)
    u, log_q = how.draw(
        torch.zeros(200_000, 1, dtype=torch.float64, device=device), torch.Generator(device).manual_seed(0)
    )
    # E_q[1 / q] is the length of the interval
    assert (-log_q).exp().mean().item() == pytest.approx(1, rel=0.01)
    assert u.abs().max() <= 0.5
    with pytest.raises(UsageError, match="std=0"):
        TruncatedNormalDequantization(0)


def test_a_classifier_learns_digits_and_judges_them(device):
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    before = torch.random.get_rng_state()
    classifier = train_classifier(train, num_steps=150)
    assert torch.equal(before, torch.random.get_rng_state())
    x, labels = held_out.all()
    found = judge(classifier, x, labels)
    assert found.agreement > 0.9
    assert found.features.shape == (len(held_out), 64)
    assert judge(classifier, x, labels.roll(1)).agreement < 0.3
    assert math.isnan(judge(classifier, x, None).agreement)
    with pytest.raises(UsageError, match="needs images"):
        train_classifier(load("moons"))


def test_a_variational_dequantisation_begins_uniform_and_learns_where_the_density_is(device):
    torch.manual_seed(0)
    raw = torch.randint(0, 3, (200, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = ArrayData(raw, None, Scaling(center=1.0, scale=1.0))
    x = data.all()[0].to(device)
    generator = torch.Generator(device).manual_seed(2)
    begun = VariationalDequantization((4,)).to(device)
    u, log_q = begun.draw(x, generator)
    assert u.abs().max() < 0.5
    assert log_q.abs().max() < 1e-4
    # an exact model of numbers that fill a tenth of their intervals: the bits of three levels are log2(3)
    points = torch.cartesian_prod(*([torch.arange(-1.0, 2.0)] * 4)).to(device)
    target = GaussianMixture(torch.ones(81, device=device), points, torch.full((81,), 0.1**2, device=device))
    model = network_model(target, VPSDE(), EDMParametrization(0.8))
    model.network.place = torch.nn.Parameter(torch.zeros((), device=device))  # says where it computes
    learned = train_dequantization(model, data, 300)
    one, bits = torch.ones((), device=device), []
    for how in (begun, learned):
        spread, log_q = dequantize(x, data.scaling, how, generator)
        bits.append(bits_per_dim(target.log_prob(spread, one, 0 * one), log_q, 4).mean().item())
    assert bits[0] > math.log2(3) + 3  # uniform numbers where a narrow density is not
    assert math.log2(3) - 0.02 < bits[1] < math.log2(3) + 0.15  # a logistic curve is no Gaussian one
    with pytest.raises(UsageError, match="are floats"):
        train_dequantization(model, ArrayData(torch.randn(9, 4)), 1)
    with pytest.raises(UsageError, match="need images"):
        VariationalDequantization((2, 3))

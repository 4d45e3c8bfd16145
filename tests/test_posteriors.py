"""Posteriors of known distributions: Bayes' rule itself, the textbook's formulas, and weights of points."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import EmpiricalDistribution, Gaussian, GaussianMixture, UsageError
from scoresde.operators import (
    BlockAverage,
    Blur,
    FunctionOperator,
    GaussianNoise,
    LinearFunctionOperator,
    Mask,
    MatrixOperator,
    PoissonNoise,
    gaussian_kernel,
)
from tests.analytic import gaussian, mixture, points
from tests.operators.cases import randn

CLEAN = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def spread(kind, shape):
    """A mixture of four components with covariances of a kind; float64."""
    dim = math.prod(shape)
    means, weights = randn(4, *shape), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    factor = randn(4, dim, dim, seed=1) / dim**0.5
    given = {"isotropic": weights / 4, "diagonal": means.exp(), "full": factor @ factor.mT}
    return GaussianMixture(weights, means, given[kind])


def log_density(target, x):
    one, zero = (part.to(x) for part in CLEAN)
    return target.log_prob(x, one, zero)


# --- mixtures -------------------------------------------------------------------------------------------------------

OPERATORS = {
    (4,): MatrixOperator(randn(3, 4, seed=2)),
    (2, 4): Mask.random((2, 4), 0.6),
    (2, 2, 2): BlockAverage((2, 2, 2), 2),
    (1, 3, 3): Blur((1, 3, 3), gaussian_kernel(0.6, 2, 1), "reflect"),
    (5,): LinearFunctionOperator(lambda x: x[:, 1:] - 0.5 * x[:, :-1], (5,)),
}


@pytest.mark.parametrize("shape", OPERATORS)
@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_the_posterior_of_a_mixture_obeys_bayes_rule(kind, shape, device):
    """log p(x | y) = log p(x) + log N(y; A x, S) - log p(y) for all x, and p(y) is that of the measured mixture."""
    prior, operator, std = spread(kind, shape).to(device), OPERATORS[shape], 0.4
    y = randn(*operator.measured_shape, seed=3).to(device)
    posterior = prior.posterior(operator, y, std)
    x = randn(20, *shape, seed=4).to(device)
    likelihood = torch.distributions.Normal(operator.to(device, torch.float64)(x), std).log_prob(y).flatten(1).sum(1)
    evidence = log_density(prior, x) + likelihood - log_density(posterior, x)
    matrix = operator.to(dtype=torch.float64).matrix().to(device)
    axes = torch.eye(x[0].numel()).to(x) if prior.rotations is None else prior.rotations
    covariances = axes.mT @ (prior.variances[:, :, None] * axes)
    noisy = matrix @ covariances @ matrix.mT + std**2 * torch.eye(len(matrix)).to(matrix)
    each = torch.distributions.MultivariateNormal(prior.means @ matrix.mT, 0.5 * (noisy + noisy.mT))
    expected = (prior.weights.log() + each.log_prob(y.flatten())).logsumexp(0)
    torch.testing.assert_close(evidence, expected.expand(20), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_without_noise_the_posterior_is_the_limit_of_little(kind):
    """Of order S; what a mask shows is known."""
    prior, mask = spread(kind, (2, 3)), Mask.random((2, 3), 0.5)
    y = randn(3, seed=3)
    exact = prior.posterior(mask, y, 0.0)
    torch.testing.assert_close(mask(exact.means.reshape(-1, 2, 3)), y.expand(4, 3), rtol=1e-12, atol=1e-12)
    samples = exact.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mask(samples), y.expand(100, 3), rtol=0, atol=1e-7)  # the root of rounding
    errors = []
    for std in (1e-3, 1e-4):
        near = prior.posterior(mask, y, std)
        errors.append([(near.means - exact.means).abs().max(), (near.weights - exact.weights).abs().max()])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.02 * coarse


def test_a_measurement_moves_the_weights():
    """Two equal components at -1 and 1, of variance v, seen with variance S: their odds at y are exp(2 y / (v + S))."""
    prior = GaussianMixture(
        torch.ones(2, dtype=torch.float64), torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.full((2,), 0.3)
    )
    eye = MatrixOperator(torch.eye(1, dtype=torch.float64))
    for y in (-0.4, 0.0, 0.25):
        found = prior.posterior(eye, torch.tensor([y], dtype=torch.float64), 0.5).weights
        odds = math.exp(2 * y / (0.3 + 0.25))
        assert found[1].item() == pytest.approx(odds / (1 + odds), rel=1e-6)  # the variances are float32


def test_components_of_no_weight_are_left_out():
    prior = GaussianMixture(torch.ones(2).double(), torch.tensor([[0.0, 0.0], [50.0, 0.0]]).double(), torch.ones(2))
    found = prior.posterior(Mask(torch.tensor([True, False])), torch.zeros(1).double(), 0.1)
    assert found.weights.tolist() == [1.0]
    assert found.means.abs().max() < 1e-12


def test_measuring_in_two_steps_is_measuring_at_once():
    prior, y = mixture(shape=(5,)), randn(4, seed=3)
    matrix = randn(4, 5, seed=2)
    first, second = MatrixOperator(matrix[:2]), MatrixOperator(matrix[2:])
    both = prior.posterior(MatrixOperator(matrix), y, 0.3)
    after = prior.posterior(first, y[:2], 0.3).posterior(second, y[2:], 0.3)
    torch.testing.assert_close(after.weights, both.weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.means, both.means, rtol=1e-10, atol=1e-10)
    x = randn(6, 5, seed=4)
    torch.testing.assert_close(log_density(after, x), log_density(both, x), rtol=1e-9, atol=1e-9)


def test_the_posterior_of_a_gaussian_is_that_of_the_textbook(device):
    """Precision C^-1 + A' A / S, mean Sigma (C^-1 mu + A' y / S): the information form, which the code does not use."""
    prior, matrix, std = gaussian(device, (5,)), randn(3, 5, seed=2).to(device), 0.3
    y = randn(3, seed=3).to(device)
    found = prior.posterior(MatrixOperator(matrix), y, std)
    axes = prior.mixture.rotations[0]
    precision = axes.mT @ (axes / prior.mixture.variances[0][:, None])
    covariance = torch.linalg.inv(precision + matrix.mT @ matrix / std**2)
    mean = covariance @ (precision @ prior.mixture.means[0] + matrix.mT @ y / std**2)
    torch.testing.assert_close(found.mixture.means[0], mean, rtol=1e-10, atol=1e-11)
    axes = found.mixture.rotations[0]
    own = axes.mT @ (found.mixture.variances[0][:, None] * axes)
    torch.testing.assert_close(own, covariance, rtol=1e-10, atol=1e-12)
    assert isinstance(found, Gaussian)


@pytest.mark.parametrize("make", [gaussian, mixture, points])
def test_a_posterior_keeps_shape_type_and_device(make, device):
    for dtype in (torch.float32, torch.float64):
        prior = make(device, (2, 2, 2)).to(dtype=dtype)
        found = prior.posterior(Mask.random((2, 2, 2), 0.5), torch.zeros(4), 0.5)
        assert type(found) is type(prior)
        assert found.shape == (2, 2, 2)
        assert found.dtype == dtype
        assert found.device.type == device.type
        assert found.sample(3).shape == (3, 2, 2, 2)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_in_single_precision_a_posterior_is_that_of_double(unit):
    """In any unit: a hundred priors with variances from 1e-2 to 1, to 20 roundings, relative to the widest."""
    for seed in range(100):
        rotation = torch.linalg.qr(randn(6, 6, seed=seed)).Q
        variances = unit**2 * 10 ** (-2 * torch.rand(6, generator=torch.Generator().manual_seed(seed)).double())
        covariance = (rotation * variances) @ rotation.mT
        prior = Gaussian(torch.zeros(6).double(), 0.5 * (covariance + covariance.mT))
        operator, y = MatrixOperator(randn(3, 6, seed=seed + 1)), unit * randn(3, seed=seed + 2)
        double, single = (
            each.posterior(operator, y.to(each.dtype), 0.1 * unit).mixture
            for each in (prior, prior.to(dtype=torch.float32))
        )
        rounding = 20 * torch.finfo(torch.float32).eps
        assert (single.variances - double.variances).abs().max() < rounding * variances.max()
        assert (single.means - double.means).abs().max() < 10 * rounding * unit


# --- points ---------------------------------------------------------------------------------------------------------


def swirl(x):
    return torch.stack([x.square().sum(1), x[:, 0] * x[:, 1].sin()], 1)


@pytest.mark.parametrize("noise", [0.4, GaussianNoise(1.5), PoissonNoise(6.0, offset=4.0)], ids=str)
def test_points_are_weighed_by_their_likelihood(noise, device):
    prior = EmpiricalDistribution(points(device).points, torch.arange(1.0, 8.0, device=device).double())
    operator = FunctionOperator(swirl, (2,))
    y = torch.tensor([1.0, 0.5], dtype=torch.float64, device=device)
    found = prior.posterior(operator, y, noise)
    measured = swirl(prior.points)
    if isinstance(noise, PoissonNoise):
        log_p = torch.distributions.Poisson(6 * (measured + 4)).log_prob((6 * (y + 4)).round()).sum(1)
    else:
        std = noise if isinstance(noise, float) else noise.std
        log_p = torch.distributions.Normal(measured, std).log_prob(y).sum(1)
    expected = prior.weights * log_p.exp()
    torch.testing.assert_close(found.weights, expected / expected.sum(), rtol=1e-10, atol=0)
    assert torch.equal(found.points, prior.points)


def test_points_that_cannot_be_are_left_out():
    found = points().posterior(Mask(torch.tensor([True, False])), points().points[2, :1], 1e-4)
    assert torch.equal(found.points, points().points[2:3])
    assert found.weights.tolist() == [1.0]


def test_points_are_the_limit_of_a_mixture_that_is_measured():
    """The posterior weights of narrow components tend to those of their points."""
    data, matrix, y = points(), MatrixOperator(randn(1, 2)), torch.tensor([0.3]).double()
    exact = data.posterior(matrix, y, 0.5)
    errors = []
    for variance in (1e-3, 1e-5):
        narrow = GaussianMixture(data.weights, data.points, torch.full((7,), variance).double())
        errors.append((narrow.posterior(matrix, y, 0.5).weights - exact.weights).abs().max())
    assert errors[1] < 0.02 * errors[0]


def weighed(device="cpu", shape=(2,)):
    """Seven points of unequal weight."""
    return EmpiricalDistribution(points(device, shape).points, torch.arange(1.0, 8.0, device=device).double())


def test_weighed_points_are_as_many_points(device):
    """A point of weight k is k points."""
    prior = weighed(device)
    repeated = EmpiricalDistribution(prior.points.repeat_interleave(torch.arange(1, 8, device=device), 0))
    alpha = torch.tensor([0.9, 0.4, 1.0], dtype=torch.float64, device=device)
    sigma = torch.tensor([0.3, 0.9, 5.0], dtype=torch.float64, device=device)
    x = randn(3, 2, seed=6).to(device)
    torch.testing.assert_close(
        prior.denoise(x, alpha, sigma), repeated.denoise(x, alpha, sigma), rtol=1e-11, atol=1e-12
    )
    torch.testing.assert_close(prior.log_prob(x, alpha, sigma), repeated.log_prob(x, alpha, sigma), rtol=1e-11, atol=0)
    assert prior.sigma_data == pytest.approx(repeated.sigma_data, rel=1e-12)


def test_the_denoiser_of_weighed_points_is_the_slope_of_their_density():
    """By central differences, whose error is of order 1e-10."""
    prior, x, h = weighed(), randn(4, 2, seed=6), 1e-5
    alpha, sigma = torch.tensor(0.6).double(), torch.tensor(0.8).double()
    slopes = [
        (prior.log_prob(x + h * unit, alpha, sigma) - prior.log_prob(x - h * unit, alpha, sigma)) / (2 * h)
        for unit in torch.eye(2).double()
    ]
    expected = (x + sigma**2 * torch.stack(slopes, 1)) / alpha
    torch.testing.assert_close(prior.denoise(x, alpha, sigma), expected, rtol=1e-8, atol=1e-8)


def test_weighed_points_are_drawn_as_often_as_their_weights_say(device):
    """All seven counts of 28,000 draws within 5 standard errors: level 4e-6."""
    prior = weighed(device)
    drawn = prior.sample(28_000, torch.Generator(device).manual_seed(0))
    shares = (drawn[:, None] == prior.points).all(2).double().mean(0)
    expected = torch.arange(1.0, 8.0, device=device).double() / 28
    torch.testing.assert_close(prior.weights, expected, rtol=1e-14, atol=0)
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / 28_000).sqrt()).all()


def test_sigma_data_of_weighed_points_is_that_of_what_is_drawn():
    prior = weighed(shape=(2, 2))
    mean = (prior.weights[:, None, None] * prior.points).sum(0).mean()
    square = (prior.weights[:, None, None] * (prior.points - mean) ** 2).sum(0).mean()
    assert prior.sigma_data == pytest.approx(square.sqrt().item(), rel=1e-12)
    equal = EmpiricalDistribution(prior.points, torch.full((7,), 3.0).double())
    assert equal.sigma_data == EmpiricalDistribution(prior.points).sigma_data


# --- mistakes -------------------------------------------------------------------------------------------------------

EYE = MatrixOperator(torch.eye(2, dtype=torch.float64))
Y = torch.zeros(2, dtype=torch.float64)
MISTAKES = {
    "curved": (
        lambda: mixture().posterior(FunctionOperator(swirl, (2,)), Y, 0.1),
        r"operator=FunctionOperator\(2 to 2\): need a linear one, to stay a mixture",
    ),
    "counts": (
        lambda: mixture().posterior(EYE, Y, PoissonNoise(5.0)),
        r"noise=PoissonNoise\(gain=5\.0, offset=1\.0\): need Gaussian noise",
    ),
    "counts of a Gaussian": (lambda: gaussian(shape=(2,)).posterior(EYE, Y, PoissonNoise(5.0)), "need Gaussian noise"),
    "two measurements": (lambda: mixture().posterior(EYE, torch.zeros(3, 2), 0.1), r"y of shape \(1, 3, 2\)"),
    "a number": (lambda: points().posterior(EYE, torch.zeros(1), 0.1), r"y of shape \(1, 1\).*need \(batch, 2\)"),
    "missing": (lambda: mixture().posterior(EYE, Y * torch.nan, 0.1), "y: holds NaN"),
    "negative noise": (lambda: mixture().posterior(EYE, Y, -0.1), r"std=-0\.1"),
    "points without noise": (lambda: points().posterior(EYE, Y, 0.0), "noise=0: gives no density"),
    "weights": (
        lambda: EmpiricalDistribution(torch.zeros(3, 2), torch.ones(2)),
        r"weights of shape \(2,\): need \(3,\)",
    ),
    "no weight": (
        lambda: EmpiricalDistribution(torch.zeros(2, 2), torch.tensor([1.0, 0.0])),
        "weights: all must be po",
    ),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()

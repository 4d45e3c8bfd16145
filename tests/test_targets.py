"""Targets: densities, scores and denoisers against autograd, quadrature and torch.distributions."""

import itertools
import math

import pytest
import torch

from samplers.euler_maruyama import drift_coefficients
from scoresde import (
    SDE,
    EmpiricalDistribution,
    Gaussian,
    GaussianMixture,
    UsageError,
)
from scoresde.targets import Target
from tests.analytic import gaussian, mixture, points, slope

EPS = torch.finfo(torch.float64).eps
TARGETS = {"gaussian": gaussian, "mixture": mixture, "points": points}
SHAPES = [(3,), (2, 2, 2)]


def randn(*shape, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


def scales(device, per_sample):
    """alpha and sigma, one pair for all or one for each of five samples."""
    alpha = torch.tensor([1.0, 0.9, 0.4, 0.05, 1.0], dtype=torch.float64, device=device)
    sigma = torch.tensor([0.1, 0.3, 0.9, 1.0, 20.0], dtype=torch.float64, device=device)
    return (alpha, sigma) if per_sample else (alpha[2], sigma[2])


def noisy(target, alpha, sigma, device):
    x_0 = target.sample(5, torch.Generator(device).manual_seed(4))
    shape = (-1,) + (1,) * (x_0.ndim - 1)
    return alpha.reshape(shape) * x_0 + sigma.reshape(shape) * randn(*x_0.shape, seed=5, device=device)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_score_is_the_gradient_of_log_prob(make, device):
    for shape, per_sample in itertools.product(SHAPES, (False, True)):
        target = make(device, shape)
        alpha, sigma = scales(device, per_sample)
        x_t = noisy(target, alpha, sigma, device).requires_grad_()
        (expected,) = torch.autograd.grad(target.log_prob(x_t, alpha, sigma).sum(), x_t)
        score = target.score(x_t, alpha, sigma)
        assert score.shape == (5, *shape)
        # alpha D - x_t loses digits where it is small against x_t: 1e-16 |x_t| / sigma^2, at most 1e-13 here
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_samples_do_not_see_one_another(make, device):
    target = make(device, (3,))
    alpha, sigma = scales(device, True)
    x_t = noisy(target, alpha, sigma, device)
    for i in range(5):
        alone = x_t[i : i + 1], alpha[i], sigma[i]
        torch.testing.assert_close(target.denoise(*alone)[0], target.denoise(x_t, alpha, sigma)[i], rtol=1e-13, atol=0)
        torch.testing.assert_close(target.log_prob(*alone)[0], target.log_prob(x_t, alpha, sigma)[i])


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_log_prob_of_a_mixture_is_that_of_torch(kind, device):
    normal = torch.distributions.MultivariateNormal
    means, weights = randn(4, 3, device=device), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, device=device)
    eye = torch.eye(3, dtype=torch.float64, device=device)
    factor = randn(4, 3, 3, seed=1, device=device)
    given, matrices = {
        "isotropic": (weights, weights[:, None, None] * eye),
        "diagonal": (means.exp(), torch.diag_embed(means.exp())),
        "full": (factor @ factor.mT, factor @ factor.mT),
    }[kind]
    target = GaussianMixture(weights, means, given)
    alpha, sigma = scales(device, False)
    x = randn(6, 3, seed=2, device=device)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), normal(alpha * means, alpha**2 * matrices + sigma**2 * eye)
    ).log_prob(x)
    torch.testing.assert_close(target.log_prob(x, alpha, sigma), expected, rtol=1e-11, atol=1e-11)
    clean = torch.ones_like(alpha), torch.zeros_like(alpha)  # no noise at all
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), normal(means, matrices)
    ).log_prob(x)
    torch.testing.assert_close(target.log_prob(x, *clean), expected, rtol=1e-9, atol=1e-9)


def test_log_prob_of_a_gaussian_image_is_that_of_torch(device):
    mean, variances = randn(2, 3, device=device), randn(2, 3, seed=1, device=device).exp()
    x, alpha, sigma = randn(5, 2, 3, seed=2, device=device), *scales(device, False)
    normal = torch.distributions.Normal(alpha * mean, (alpha**2 * variances + sigma**2).sqrt())
    expected = normal.log_prob(x).sum((1, 2))
    torch.testing.assert_close(Gaussian(mean, variances).log_prob(x, alpha, sigma), expected)
    matrix = torch.diag(variances.flatten())
    torch.testing.assert_close(Gaussian(mean, matrix).log_prob(x, alpha, sigma), expected)


def test_denoiser_by_quadrature(device):
    """E[x_0 | x_t] as a ratio of integrals; the trapezoid rule on a smooth decaying integrand is exact to rounding."""
    target = mixture(device, (1,))
    alpha, sigma = scales(device, True)
    x_t = noisy(target, alpha, sigma, device)
    grid = torch.linspace(-12, 12, 40_001, dtype=torch.float64, device=device)
    log_prior = target.log_prob(grid[:, None], torch.ones_like(alpha[0]), torch.zeros_like(alpha[0]))
    log_joint = log_prior - 0.5 * ((x_t - alpha[:, None] * grid) / sigma[:, None]) ** 2
    weights = log_joint.softmax(1)
    torch.testing.assert_close(target.denoise(x_t, alpha, sigma), weights @ grid[:, None], rtol=1e-9, atol=1e-10)


def test_denoiser_of_points_by_bayes_rule(device):
    target = points(device, (2, 2))
    alpha, sigma = scales(device, True)
    x_t = noisy(target, alpha, sigma, device)
    for i in range(5):
        distance = (x_t[i] - alpha[i] * target.points).square().sum((1, 2))
        weights = torch.exp(-(distance - distance.min()) / (2 * sigma[i] ** 2))
        expected = torch.einsum("n,nij->ij", weights / weights.sum(), target.points)
        torch.testing.assert_close(target.denoise(x_t, alpha, sigma)[i], expected, rtol=1e-11, atol=1e-12)


def test_points_are_a_mixture_of_vanishing_width(device):
    data = points(device)
    alpha, sigma = scales(device, True)
    x_t = noisy(data, alpha, sigma, device)
    errors = []
    for variance in (1e-4, 1e-6):
        spread = GaussianMixture(torch.ones(7).to(x_t), data.points, torch.full((7,), variance).to(x_t))
        errors.append((spread.denoise(x_t, alpha, sigma) - data.denoise(x_t, alpha, sigma)).abs().max().item())
    assert errors[1] < 0.02 * errors[0]  # the difference is of first order in the variance
    thin = GaussianMixture(torch.ones(7).to(x_t), data.points, torch.zeros(7).to(x_t))
    torch.testing.assert_close(thin.denoise(x_t, alpha, sigma), data.denoise(x_t, alpha, sigma), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(thin.log_prob(x_t, alpha, sigma), data.log_prob(x_t, alpha, sigma), rtol=1e-11, atol=0)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_denoiser_at_both_ends(make, device):
    target = make(device, (3,))
    x_0 = target.sample(4, torch.Generator(device).manual_seed(0))
    one = torch.ones((), dtype=torch.float64, device=device)
    clean = target.denoise(x_0, one, 1e-6 * one)  # the error is of order sigma^2 / smallest variance
    torch.testing.assert_close(clean, x_0, rtol=0, atol=1e-8)
    blind = target.denoise(1e6 * randn(4, 3, device=device), one, 1e6 * one)
    mean = {
        Gaussian: lambda: target.mixture.means[0],
        GaussianMixture: lambda: target.weights @ target.means,
        EmpiricalDistribution: lambda: target.points.mean(0),
    }[type(target)]()
    torch.testing.assert_close(blind, mean.expand(4, 3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_probability_flow_carries_one_marginal_to_another(shape, device):
    target = gaussian(device, shape)
    dim = math.prod(shape)
    start, end = scales(device, True), tuple(part.flip(0) for part in scales(device, True))
    x = noisy(target, *start, device)
    y = target.probability_flow(x, start, end)
    torch.testing.assert_close(target.probability_flow(y, end, start), x, rtol=1e-10, atol=1e-11)
    covariance = target.mixture.rotations[0].mT @ torch.diag(target.mixture.variances[0]) @ target.mixture.rotations[0]
    eye = torch.eye(dim, dtype=torch.float64, device=device)
    for i in range(5):
        a, b = tuple(s[i] for s in start), tuple(s[i] for s in end)
        # the map is affine: its images of 0 and of the unit vectors tell all
        images = target.probability_flow(torch.cat([0 * eye[:1], eye]).reshape(-1, *shape), a, b).flatten(1)
        matrix, shift = (images[1:] - images[0]).mT, images[0]
        mean = target.mixture.means[0]
        torch.testing.assert_close(matrix @ (a[0] * mean) + shift, b[0] * mean, rtol=1e-10, atol=1e-11)
        before, after = (s[0] ** 2 * covariance + s[1] ** 2 * eye for s in (a, b))
        torch.testing.assert_close(matrix @ before @ matrix.mT, after, rtol=1e-10, atol=1e-11)
        # one pair of scales a sample or one for all: the same
        torch.testing.assert_close(target.probability_flow(x[i : i + 1], a, b)[0], y[i], rtol=1e-12, atol=1e-12)


def test_probability_flow_solves_its_equation(sde: SDE, device):
    target = gaussian(device)
    start, middle = 0.3 * sde.t_max, 0.61037 * sde.t_max  # 0.61037 is no kink of the DDPM chain
    t, s = (torch.tensor(v, dtype=torch.float64, device=device) for v in (start, middle))
    x = sde.diffuse(target.sample(4, torch.Generator(device).manual_seed(0)), t, randn(4, 3, device=device))

    def flow(time):
        return target.probability_flow(x, (sde.alpha(t), sde.sigma(t)), (sde.alpha(time), sde.sigma(time)))

    velocity = torch.stack([slope(lambda time, i=i, j=j: flow(time)[i, j], s) for i in range(4) for j in range(3)])
    on_x, on_x0 = drift_coefficients(sde, s, eta=0)
    expected = on_x * flow(s) + on_x0 * target.denoise(flow(s), sde.alpha(s), sde.sigma(s))
    size = (sde.drift_coef(s).abs() * flow(s).abs().max() + sde.diffusion(s) ** 2).item()  # of the terms that cancel
    torch.testing.assert_close(velocity.reshape(4, 3), expected, rtol=1e-9, atol=1e-12 * size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_samples_have_the_moments(make, shape, device):
    """All 252 means and second moments within 5 standard errors of 20,000 draws: level below 2e-4."""
    target, num = make(device, shape), 20_000
    x = target.sample(num, torch.Generator(device).manual_seed(0)).flatten(1)
    if isinstance(target, EmpiricalDistribution):
        means, covariances = target.points.flatten(1), torch.zeros(7, x.shape[1], x.shape[1]).to(x)
        weights = torch.full((7,), 1 / 7).to(x)
    else:
        parts = target.mixture if isinstance(target, Gaussian) else target
        weights, means, rotations = parts.weights, parts.means, parts.rotations
        covariances = rotations.mT @ torch.diag_embed(parts.variances) @ rotations
    first = weights @ means
    second = torch.einsum("k,kij->ij", weights, covariances + means[:, :, None] * means[:, None])
    products = x[:, :, None] * x[:, None]
    assert ((x.mean(0) - first).abs() < 5 * x.std(0) / num**0.5).all()
    assert ((products.mean(0) - second).abs() < 5 * products.std(0) / num**0.5).all()


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_sigma_data_is_the_deviation_over_all_entries(make, device):
    """Within 5 standard errors of the variance of 20,000 draws, whose entries are taken as one sample."""
    for shape in SHAPES:
        target = make(device, shape)
        entries = target.sample(20_000, torch.Generator(device).manual_seed(1)).flatten(1)
        squares = (entries - entries.mean()).square().mean(1)  # a sample's share of the variance
        error = squares.std() / 20_000**0.5
        assert abs(squares.mean() - target.sigma_data**2) < 5 * error, shape


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_sampling_repeats_under_a_generator(make, device):
    target = make(device, (2, 2, 2))
    first, second = (target.sample(5, torch.Generator(device).manual_seed(3)) for _ in range(2))
    assert first.shape == (5, 2, 2, 2)
    assert torch.equal(first, second)


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_a_target_moves_as_a_whole(make, device):
    double = make("cpu", (3,))
    single = double.to(device, torch.float32)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert (double.device.type, single.device.type) == ("cpu", device.type)
    assert single.sample(3).dtype == torch.float32
    assert single.sigma_data == pytest.approx(double.sigma_data, rel=1e-5)
    one = torch.ones((), device=device)
    assert single.log_prob(torch.zeros(2, 3, device=device), one, one).dtype == torch.float32
    assert make("cpu", (3,)).sigma_data == double.sigma_data  # the first is as it was


def test_mixture_in_another_type(device):
    double = mixture(device, (2, 2))
    single = double.to(dtype=torch.float32)
    alpha, sigma = scales(device, True)
    x = noisy(double, alpha, sigma, device)
    result = single.denoise(x.float(), alpha.float(), sigma.float())
    assert result.dtype == torch.float32
    assert single.sample(2).dtype == torch.float32
    assert single.shape == double.shape == (2, 2)
    torch.testing.assert_close(result.double(), double.denoise(x, alpha, sigma), rtol=1e-4, atol=1e-4)


def test_weights_are_normalised():
    target = GaussianMixture(torch.tensor([2.0, 6.0]), torch.zeros(2, 1), torch.ones(2))
    torch.testing.assert_close(target.weights, torch.tensor([0.25, 0.75]))


MISTAKES = {
    "weights": (lambda: GaussianMixture(torch.ones(3), torch.zeros(2, 4), torch.ones(2)), r"weights.*\(3,\).*\(2,\)"),
    "zero weight": (lambda: GaussianMixture(torch.tensor([0.0, 1.0]), torch.zeros(2, 4), torch.ones(2)), "positive"),
    "covariances": (
        lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 4), torch.ones(2, 5)),
        r"covariances.*\(2, 5\)",
    ),
    "transposed": (
        lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 4), torch.ones(4, 2)),
        r"covariances.*\(4, 2\)",
    ),
    "indefinite": (lambda: Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0]))), "semi-definite"),
    "no points": (lambda: EmpiricalDistribution(torch.zeros(0, 2)), "points"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_target_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Target()

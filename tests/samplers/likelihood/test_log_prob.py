"""Log densities of exact models against their closed forms: errors, orders, gradients."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

from samplers import Probes, adaptive_log_prob, log_prob, to_noise
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    CosineSDE,
    DenoisedParametrization,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    GaussianMixture,
    GaussianPathSDE,
    NetworkScoreModel,
    RectifiedFlowSDE,
    SubVPSDE,
    UNet,
    UsageError,
    elbo,
)
from tests.analytic import gaussian, mixture, points
from tests.densities import exact_log_prob, rmse

SDES = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE(), RectifiedFlowSDE(), DiscreteVPSDE()]
SDES.append(GaussianPathSDE(lambda t: torch.cos(t) ** 2, torch.sin, 1e-3, 1.56))


def names(sde):
    return type(sde).__name__


def narrow_modes():
    """Nine modes of deviation 0.03 and unequal weights, on a spiral."""
    angle, radius = 2.4 * torch.arange(9, dtype=torch.float64), torch.linspace(0.15, 0.85, 9, dtype=torch.float64)
    means = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    weights = torch.tensor([1.0, 2, 3, 1, 2, 4, 1, 3, 2])
    return GaussianMixture(weights.double(), means, torch.full((9,), 0.03**2, dtype=torch.float64))


def matched(target):
    """The Gaussian of a target's mean and covariance."""
    x = target.sample(100_000, torch.Generator(target.device).manual_seed(9))
    return Gaussian(x.mean(0), torch.cov(x.flatten(1).T))


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_narrow_modes_to_a_thousandth_in_64_evaluations_and_a_ten_thousandth_in_128(sde, device):
    target = narrow_modes().to(device)
    x = target.sample(100, torch.Generator(device).manual_seed(1))
    model, prior = ExactScoreModel(target, sde), matched(target)
    for count, largest in ((64, 1e-3), (128, 1e-4)):
        told = []
        found = log_prob(model, x, num_evaluations=count, prior=prior, on_evaluation=lambda told=told: told.append(1))
        assert rmse(found, target, x) < largest
        assert found.nfe == count == len(told)
        assert not found.standard_error.any()
    assert rmse(adaptive_log_prob(model, x, prior=prior), target, x) < 3e-4


@pytest.mark.parametrize("sde", SDES, ids=names)
def test_the_order_is_four(sde, device):
    target = gaussian(device)  # its own prior: what is left is the error of the steps
    x = target.sample(20, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, sde)
    errors = [rmse(log_prob(model, x, num_evaluations=count, prior=target), target, x) for count in (50, 98, 194)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert max(orders) > 3.7 or errors[-1] < 1e-10, (errors, orders)


def test_an_image_and_a_vector_have_the_same_density(device):
    as_image, as_vector = mixture(device, (1, 2, 3)), mixture(device, (6,))
    x = as_vector.sample(10, torch.Generator(device).manual_seed(1))
    of_vector = log_prob(ExactScoreModel(as_vector, VPSDE()), x, prior=as_vector)
    of_image = log_prob(ExactScoreModel(as_image, VPSDE()), x.reshape(-1, 1, 2, 3), prior=as_image)
    torch.testing.assert_close(of_image.log_prob, of_vector.log_prob, rtol=1e-9, atol=1e-9)
    assert of_image.latent.shape == (10, 1, 2, 3)
    assert rmse(of_vector, as_vector, x) < 1e-3


def test_a_density_integrates_to_one(device):
    target = gaussian(device, (1,))
    x = torch.linspace(-12, 12, 801, dtype=torch.float64, device=device)[:, None]
    density = log_prob(ExactScoreModel(target, SubVPSDE()), x, prior=target).log_prob.exp()
    assert abs(density.sum().item() * 24 / 800 - 1) < 1e-3


def test_the_part_of_truncation_is_the_growth_of_the_entropy_below_the_least_noise(device):
    """Under an SDE whose least noise level is a third of the data's deviation, and with 0.7 for that deviation."""
    variance, sde = 0.03**2, VESDE()
    target = Gaussian(
        torch.zeros(2, dtype=torch.float64, device=device), variance * torch.ones(2, device=device).double()
    )
    exact = ExactScoreModel(target, sde)
    model = CallableScoreModel(exact.denoise, DenoisedParametrization(0.7), sde, (2,), device, torch.float64)
    found = log_prob(model, torch.zeros(1, 2, dtype=torch.float64, device=device), prior=target)
    level = sde.span().noise_level[1].item()
    below = math.log(1 + level**2 / variance) - math.log(1 + (level / 0.7) ** 2)  # of u, then of y = u cos(phi)
    assert found.truncation.item() == pytest.approx(below, rel=2e-3)


def test_a_sample_is_the_same_for_every_batch_size(device):
    target = mixture(device, (1, 2, 4))
    x = target.sample(7, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, VPSDE())
    whole, parts = (log_prob(model, x, divergence=Probes(2), batch_size=size) for size in (7, 3))
    torch.testing.assert_close(whole.log_prob, parts.log_prob, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.standard_error, parts.standard_error, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_the_score_of_the_data(device):
    target = mixture(device)
    x = target.sample(8, torch.Generator(device).manual_seed(1)).requires_grad_()
    found = log_prob(ExactScoreModel(target, VPSDE()), x, num_evaluations=96, prior=target, differentiable=True)
    (gradient,) = torch.autograd.grad(found.log_prob.sum(), x)
    (exact,) = torch.autograd.grad(exact_log_prob(target, x).sum(), x)
    torch.testing.assert_close(gradient, exact, rtol=5e-3, atol=5e-3)


def test_the_gradient_reaches_the_parameters_of_a_network(device):
    torch.manual_seed(0)
    network = MLP(dim=2, width=8, depth=1).to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), (2,)).double()
    x, weight = torch.randn(3, 2, dtype=torch.float64, device=device), next(network.parameters())

    def total():
        return log_prob(model, x, num_evaluations=12, differentiable=True).log_prob.sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    with torch.no_grad():
        place = tuple(torch.nonzero(gradient.abs() == gradient.abs().max())[0].tolist())
        ends = []
        for change in (1e-5, -2e-5):
            weight[place] += change
            ends.append(total().item())
    assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_images_of_a_network_in_both_types_and_in_every_mode(device):
    torch.manual_seed(0)
    network = UNet(channels_in=1, channels=8, num_classes=3).to(device)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.7), (1, 8, 8)).eval().requires_grad_(False)
    x, cond = torch.randn(2, 1, 8, 8, device=device), torch.tensor([0, 2], device=device)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found = log_prob(model, x, cond, num_evaluations=10)
            assert not found.log_prob.requires_grad
    double = log_prob(model, x.double(), cond, num_evaluations=10)
    assert found.latent.dtype == torch.float32
    assert double.latent.dtype == torch.float64
    torch.testing.assert_close(found.log_prob, double.log_prob, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("target", [mixture, gaussian], ids=lambda make: make.__name__)
def test_every_kind_of_target_can_be_asked(target, device):
    exact = target(device)
    model = ExactScoreModel(exact, EDMSDE(t_min=0.05))
    x = torch.randn(3, *exact.shape, dtype=torch.float64, device=device)
    assert log_prob(model, x, num_evaluations=20).log_prob.isfinite().all()


def test_a_guess_below_the_smallest_noise_level_is_called_one(device):
    exact = points(device)  # has no density
    model = ExactScoreModel(exact, EDMSDE(t_min=0.05))
    x = torch.randn(3, *exact.shape, dtype=torch.float64, device=device)
    for ask in (log_prob, adaptive_log_prob):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            assert ask(model, x).log_prob.isfinite().all()
        assert any("below the model's smallest level, 0.05" in str(each.message) for each in shown)


@pytest.mark.parametrize("width", [0.03, 0.012])
def test_the_error_of_the_steps_is_told_from_above(width, device):
    target = GaussianMixture(*(narrow_modes().weights, narrow_modes().means, torch.full((9,), width**2).double()))
    target = target.to(device)
    x = target.sample(200, torch.Generator(device).manual_seed(1))
    model, prior = ExactScoreModel(target, VPSDE()), matched(target)
    told = []
    for count in (40, 80, 160):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            found = log_prob(model, x, num_evaluations=count, prior=prior)
        error = (found.step_error / 2).square().mean().sqrt().item()
        told.append(error)
        assert error > 0.5 * rmse(found, target, x)
        assert bool(shown) == (found.step_error.square().mean().sqrt().item() / 2 > 0.05)
        assert all("the steps are too large" in str(each.message) for each in shown)
    assert told[0] > 8 * told[1] > 64 * told[2]


@pytest.mark.parametrize("deviation", [0.02, 6.0, 30.0])
def test_data_of_any_scale_within_the_noise_levels_have_the_density_of_their_scale(deviation, device):
    """Also where the data are a fifth of what is left at t_max: the default prior knows them."""
    target = Gaussian(
        torch.zeros(3, dtype=torch.float64, device=device), torch.full((3,), deviation**2, device=device).double()
    )
    x = target.sample(50, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, VPSDE())
    assert rmse(log_prob(model, x), target, x) < 1e-4
    bound = elbo(model, x, generator=torch.Generator(device).manual_seed(0))
    error = bound.standard_error.square().mean().sqrt() / len(x) ** 0.5
    assert (bound.bound - exact_log_prob(target, x)).mean().abs() < 4 * error + 0.01


def test_data_far_below_the_smallest_noise_have_a_finite_density_and_warnings(device):
    target = Gaussian(
        torch.zeros(2, dtype=torch.float64, device=device), torch.full((2,), 3e-8, device=device).double()
    )
    x = target.sample(10, torch.Generator(device).manual_seed(1))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert log_prob(ExactScoreModel(target, EDMSDE()), x).log_prob.isfinite().all()
    assert any("do not span it" in str(each.message) for each in shown)


def test_columns_that_repeat_a_value_are_named(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, dtype=torch.float64, generator=generator)
    x[:, 1] = torch.randint(2, (60,), generator=generator)
    x[:9, 4] = 0.25
    model = ExactScoreModel(gaussian(device, (5,)), VPSDE())
    for ask in (log_prob, adaptive_log_prob):
        with pytest.warns(UserWarning, match=r"x_0: 2 of 5 columns \(1, 4\) hold one value in 10%"):
            ask(model, x.to(device))
    with pytest.warns(UserWarning, match=r"2 of 5 columns"):
        elbo(model, x.to(device))


def test_copies_of_one_sample_repeat_no_value(device):
    x = torch.randn(1, 5, dtype=torch.float64, device=device).expand(40, 5)
    assert log_prob(ExactScoreModel(gaussian(device, (5,)), VPSDE()), x).log_prob.std() < 1e-9


def test_a_function_of_x_and_t_can_be_asked(device):
    model = CallableScoreModel(
        lambda x, t: x / (1 + t.reshape(-1, 1) ** 2), DenoisedParametrization(), EDMSDE(), (3,), device, torch.float64
    )
    x = torch.randn(5, 3, dtype=torch.float64, device=device)
    found = log_prob(model, x, num_evaluations=80).log_prob
    normal = -0.5 * x.square().sum(1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, normal, rtol=2e-3, atol=2e-3)  # the prior lacks the data's variance: 3/80^2


def test_mistakes_are_named(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    x = torch.zeros(2, 2, dtype=torch.float64, device=device)
    for wrong, message in (
        (torch.zeros(2, 3, device=device), "x_0 of shape"),
        (torch.zeros(2, 2, dtype=torch.long, device=device), "int64: need floats"),
        (x.clone().fill_(math.nan), "2 of 2 samples hold NaN"),
    ):
        for ask in (log_prob, adaptive_log_prob, to_noise):
            with pytest.raises(UsageError, match=message):
                ask(model, wrong)
    with pytest.raises(UsageError, match="cond of length 1: need one entry a sample, 2"):
        log_prob(model, x, torch.tensor([0], device=device))
    with pytest.raises(UsageError, match="num_evaluations=4: need at least 5"):
        log_prob(model, x, num_evaluations=4)
    with pytest.raises(UsageError, match="rtol=0"):
        adaptive_log_prob(model, x, rtol=0)

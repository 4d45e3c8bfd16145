"""Parametrisations: D = c_skip x_t + c_out F is x_0 at the target of F, and the constants are those of the papers."""

import pytest
import torch
from analytic import PARAMETRIZATIONS

from scoresde import (
    EDMSDE,
    VPSDE,
    DenoisedParametrization,
    EDMParametrization,
    NoiseParametrization,
    ScoreParametrization,
    UsageError,
    VelocityParametrization,
)
from scoresde.parametrization import Parametrization


@pytest.fixture(params=PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def parametrization(request):
    return request.param


def draw(sde, device, shape=(2, 3)):
    """x_0, eps and x_t at eleven times over the whole range, with their level."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 11, *shape, generator=generator, dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min, sde.t_max, 11, dtype=torch.float64, device=device)
    return x_0, eps, sde.diffuse(x_0, t, eps), sde.level(t).match_rank(x_0)


def test_the_target_of_f_makes_d_the_clean_data(parametrization, sde, device):
    x_0, eps, x_t, level = draw(sde, device)
    target = parametrization.target(level, x_0, eps)
    x0_hat = parametrization.c_skip(level) * x_t + parametrization.c_out(level) * target
    # sigma eps is added to alpha x_0 and taken away again: a few roundings of sigma eps / alpha
    error = (x0_hat - x_0).abs() / (1 + level.noise_level * eps.abs() + x_0.abs())
    assert error.max() < 20 * torch.finfo(torch.float64).eps


def test_every_target_is_linear_in_what_it_is_made_of(parametrization, sde, device):
    """An F that is the mean of targets gives a D that is the mean of the x_0: why regression finds E[x_0 | x_t]."""
    x_0, eps, x_t, level = draw(sde, device)
    other = 0.3 * x_0 + 1
    eps_other = (x_t - level.alpha * other) / level.sigma  # another x_0 that explains the same x_t
    mean = 0.5 * (parametrization.target(level, x_0, eps) + parametrization.target(level, other, eps_other))
    x0_hat = parametrization.c_skip(level) * x_t + parametrization.c_out(level) * mean
    error = (x0_hat - 0.5 * (x_0 + other)).abs() / (1 + level.noise_level * (eps.abs() + eps_other.abs()))
    assert error.max() < 1e-13


def test_c_in_brings_x_t_to_unit_variance(parametrization, sde, device):
    t = torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64, device=device)
    one = torch.ones(21, 1, dtype=torch.float64, device=device)
    data = sde.diffuse(
        parametrization.sigma_data * one, t, 0 * one
    )  # one standard deviation of x_0 alone, of eps alone
    noise = sde.diffuse(0 * one, t, one)
    variance = parametrization.c_in(sde.level(t).match_rank(one)) ** 2 * (data**2 + noise**2)
    torch.testing.assert_close(variance, one, rtol=1e-14, atol=0)


def test_edm_gives_its_network_targets_of_unit_variance(sde, device):
    parametrization = EDMParametrization(0.7)
    level = sde.level(torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64, device=device))
    zero, one = torch.zeros_like(level.t), torch.ones_like(level.t)
    variance = parametrization.target(level, 0.7 * one, zero) ** 2 + parametrization.target(level, zero, one) ** 2
    torch.testing.assert_close(variance, one, rtol=1e-14, atol=0)
    # and uncorrelated with its input, which is what fixes c_skip
    product = parametrization.target(level, 0.7 * one, zero) * level.alpha * 0.7
    product += parametrization.target(level, zero, one) * level.sigma
    torch.testing.assert_close(product / (level.alpha + level.sigma), zero, rtol=0, atol=1e-15)


def test_edm_constants_of_table_1():
    sigma, sd = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64), 0.5
    level, edm = EDMSDE().level(sigma), EDMParametrization()
    torch.testing.assert_close(edm.c_skip(level), sd**2 / (sigma**2 + sd**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(edm.c_out(level), sigma * sd / (sd**2 + sigma**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(edm.c_in(level), 1 / (sigma**2 + sd**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(edm.c_noise(level), sigma.log() / 4, rtol=1e-14, atol=0)


def test_targets_are_what_they_are_called(device):
    x_0, eps, x_t, level = draw(VPSDE(), device)
    assert torch.equal(NoiseParametrization().target(level, x_0, eps), eps)
    assert torch.equal(DenoisedParametrization().target(level, x_0, eps), x_0)
    kernel = torch.distributions.Normal(level.alpha * x_0, level.sigma)
    x = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(kernel.log_prob(x).sum(), x)  # of p(x_t | x_0)
    rounding = {"rtol": 1e-9, "atol": 1e-9}  # x_t - alpha x_0 cancels at small sigma: eps / sigma^2
    torch.testing.assert_close(ScoreParametrization().target(level, x_0, eps), score, **rounding)
    # on a variance-preserving path (alpha, sigma) = (cos, sin) of an angle, and v is the derivative in it
    angle = torch.atan2(level.sigma, level.alpha)
    v = -torch.sin(angle) * x_0 + torch.cos(angle) * eps
    torch.testing.assert_close(VelocityParametrization().target(level, x_0, eps), v, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [type(p) for p in PARAMETRIZATIONS.values()])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_sigma_data_must_be_positive(kind, value):
    with pytest.raises(UsageError, match=f"sigma_data={value}"):
        kind(sigma_data=value)


def test_parametrization_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Parametrization()

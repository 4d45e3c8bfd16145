"""Parametrisations: D = c_skip x_t + c_out F is x_0 at the target of F, and the constants are those of the papers."""

import dataclasses

import pytest
import torch

from scoresde import (
    EDMSDE,
    VPSDE,
    DenoisedParametrization,
    DiscreteVPSDE,
    EDMParametrization,
    LogSigmaInput,
    NoiseParametrization,
    ScoreParametrization,
    TimeInput,
    UnitVarianceInput,
    UsageError,
    VelocityParametrization,
)
from scoresde.parametrization import Input, Parametrization
from tests.analytic import PARAMETRIZATIONS


def draw(sde, device, shape=(2, 3)):
    """x_0, eps and x_t at eleven times over the whole range, with their level."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 11, *shape, generator=generator, dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min, sde.t_max, 11, dtype=torch.float64, device=device)
    return x_0, eps, sde.diffuse(x_0, t, eps), sde.level(t).match_rank(x_0)


def test_the_target_of_f_makes_d_the_clean_data(sde, device):
    x_0, eps, x_t, level = draw(sde, device)
    for name, parametrization in PARAMETRIZATIONS.items():
        target = parametrization.target(level, x_0, eps)
        x0_hat = parametrization.c_skip(level) * x_t + parametrization.c_out(level) * target
        # sigma eps is added to alpha x_0 and taken away again: a few roundings of sigma eps / alpha
        error = (x0_hat - x_0).abs() / (1 + level.noise_level * eps.abs() + x_0.abs())
        assert error.max() < 20 * torch.finfo(torch.float64).eps, name


def test_every_target_is_linear_in_what_it_is_made_of(sde, device):
    """An F that is the mean of targets gives a D that is the mean of the x_0: why regression finds E[x_0 | x_t]."""
    x_0, eps, x_t, level = draw(sde, device)
    other = 0.3 * x_0 + 1
    eps_other = (x_t - level.alpha * other) / level.sigma  # another x_0 that explains the same x_t
    for name, parametrization in PARAMETRIZATIONS.items():
        mean = 0.5 * (parametrization.target(level, x_0, eps) + parametrization.target(level, other, eps_other))
        x0_hat = parametrization.c_skip(level) * x_t + parametrization.c_out(level) * mean
        error = (x0_hat - 0.5 * (x_0 + other)).abs() / (1 + level.noise_level * (eps.abs() + eps_other.abs()))
        assert error.max() < 1e-13, name


def test_c_in_brings_x_t_to_unit_variance(sde, device):
    t = torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64, device=device)
    one = torch.ones(21, 1, dtype=torch.float64, device=device)
    for parametrization in PARAMETRIZATIONS.values():
        data = sde.diffuse(parametrization.sigma_data * one, t, 0 * one)  # one standard deviation of x_0 alone
        noise = sde.diffuse(0 * one, t, one)  # and of eps alone
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


def test_sigma_data_of_edm_is_that_of_table_1_and_1_elsewhere():
    for kind in map(type, PARAMETRIZATIONS.values()):
        assert kind().sigma_data == (0.5 if kind is EDMParametrization else 1.0), kind


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_sigma_data_must_be_positive(value):
    for kind in map(type, PARAMETRIZATIONS.values()):
        with pytest.raises(UsageError, match=f"sigma_data={value}"):
            kind(sigma_data=value)


# what the network sees

INPUTS = {"unit variance": UnitVarianceInput(), "time": TimeInput(), "log sigma": LogSigmaInput()}


def test_by_default_a_network_sees_the_signal_to_noise_ratio_alone(sde, device):
    level = sde.level(torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64, device=device))
    for name, parametrization in PARAMETRIZATIONS.items():
        assert parametrization.input == UnitVarianceInput(), name
        torch.testing.assert_close(parametrization.c_noise(level), level.noise_level.log() / 4, rtol=0, atol=1e-14)


def test_published_networks_see_x_t_as_it_is_and_time_or_noise(sde, device):
    level = sde.level(torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64, device=device))
    for name, parametrization in PARAMETRIZATIONS.items():
        time = dataclasses.replace(parametrization, input=TimeInput(scale=500.0, offset=3.0))
        log_sigma = dataclasses.replace(parametrization, input=LogSigmaInput())
        for changed in (time, log_sigma):
            assert torch.equal(changed.c_in(level), torch.ones_like(level.t)), name
            assert torch.equal(changed.c_skip(level), parametrization.c_skip(level)), name
            assert torch.equal(changed.c_out(level), parametrization.c_out(level)), name
        torch.testing.assert_close(time.c_noise(level), 500 * level.t + 3, rtol=1e-15, atol=0)
        torch.testing.assert_close(log_sigma.c_noise(level), level.sigma.log(), rtol=1e-15, atol=0)


def test_time_input_is_the_label_of_song_et_al_and_the_index_of_ddpm():
    level = VPSDE().level(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(TimeInput().c_noise(level), 999 * level.t, rtol=1e-15, atol=0)
    chain = DiscreteVPSDE(num_levels=20)
    level = chain.level(torch.arange(1, 21, dtype=torch.float64) / 20)
    index = torch.arange(20, dtype=torch.float64)
    torch.testing.assert_close(TimeInput(scale=20, offset=-1).c_noise(level), index, rtol=0, atol=1e-13)


def test_every_label_rises_with_the_noise(sde, device):
    level = sde.level(torch.linspace(sde.t_min, sde.t_max, 501, dtype=torch.float64, device=device))
    for name, what in INPUTS.items():
        assert (what.c_noise(level).diff() > 0).all(), name


def test_an_input_of_the_user_s_own(device):
    class Doubled(Input):
        def c_in(self, level, sigma_data):
            return 2 / sigma_data * torch.ones_like(level.t)

        def c_noise(self, level):
            return level.noise_level

    level = EDMSDE().level(torch.tensor([0.1, 3.0], dtype=torch.float64, device=device))
    parametrization = NoiseParametrization(0.5, Doubled())
    assert torch.equal(parametrization.c_in(level), torch.full_like(level.t, 4.0))
    assert torch.equal(parametrization.c_noise(level), level.sigma)


@pytest.mark.parametrize("concept", [Input, Parametrization])
def test_concepts_are_abstract(concept):
    with pytest.raises(TypeError, match="abstract"):
        concept()

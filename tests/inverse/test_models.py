"""Models of posteriors are exact where they promise it, under every SDE, and can be differentiated."""

from __future__ import annotations

import pytest
import torch

from samplers import log_prob
from scoresde import (
    VESDE,
    VPSDE,
    ExactScoreModel,
    Gaussian,
    RectifiedFlowSDE,
    SubVPSDE,
)
from scoresde.inverse import MMPS, DiffPIR, PiGDM
from scoresde.operators import (
    BlockAverage,
    FunctionOperator,
    Grey,
    LinearFunctionOperator,
    Mask,
)
from tests.analytic import gaussian, mixture
from tests.inverse.problems import (
    MODELS,
    PATHS,
    STD,
    level_at,
    measurement,
    projection,
    states,
)
from tests.operators.cases import randn

paths = pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)
every = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
SHARES = (0.02, 0.3, 0.9)


def flat_normal(shape, mean=0.4, deviation=0.7, device="cpu"):
    """N(mean, deviation^2 I)."""
    whole = torch.full(shape, mean, dtype=torch.float64, device=device)
    return Gaussian(whole, torch.full_like(whole, deviation**2))


@paths
@pytest.mark.parametrize("iterations", [None, 3, 5])
def test_moment_matching_is_exact_on_a_gaussian(sde, iterations, device):
    """With as many iterations as there are measured values, or more; variances of the data from 0.01 to 4."""
    prior, y = gaussian(device, (6,)), measurement().to(device)
    model = MMPS(ExactScoreModel(prior, sde), projection(), STD, iterations)
    exact = ExactScoreModel(prior.posterior(projection(), y, STD), sde)
    for share in SHARES:
        level = level_at(sde, share, device)
        x_t = states(level, (6,))
        found = model.denoise_at(x_t, level, y.expand(4, -1))
        torch.testing.assert_close(found, exact.denoise_at(x_t, level), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "operator", [Grey((2, 2, 2)), BlockAverage((2, 2, 2), 2), Mask.random((2, 2, 2), 0.4)], ids=str
)
def test_moment_matching_is_exact_on_images(operator, device):
    prior = gaussian(device, (2, 2, 2))
    y = randn(*operator.measured_shape, seed=3).to(device)
    model = MMPS(ExactScoreModel(prior, VPSDE()), operator, STD, None)
    exact = ExactScoreModel(prior.posterior(operator, y, STD), VPSDE())
    level = level_at(VPSDE(), 0.3, device)
    x_t = states(level, (2, 2, 2))
    found = model.denoise_at(x_t, level, y.expand(4, *y.shape))
    torch.testing.assert_close(found, exact.denoise_at(x_t, level), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("other", [VESDE(), SubVPSDE(), RectifiedFlowSDE()], ids=lambda sde: type(sde).__name__)
def test_a_posterior_means_the_same_under_another_sde(other, device):
    prior, y = gaussian(device, (6,)), measurement().to(device)
    model = ExactScoreModel(prior, VPSDE())
    exact = ExactScoreModel(prior.posterior(projection(), y, STD), other)
    for make in MODELS.values():
        outside = make(model, projection(), STD).under(other)
        inside = make(model.under(other), projection(), STD)
        for share in SHARES:
            level = level_at(outside.sde, share, device)
            x_t = states(level, (6,))
            found = outside.denoise_at(x_t, level, y.expand(4, -1))
            torch.testing.assert_close(inside.denoise_at(x_t, level, y.expand(4, -1)), found, rtol=1e-9, atol=1e-9)
            if isinstance(inside, MMPS):
                torch.testing.assert_close(found, exact.denoise_at(x_t, level), rtol=1e-8, atol=1e-8)


@paths
@pytest.mark.parametrize("std", [0.0, STD])
def test_pseudo_inverse_guidance_is_exact_on_independent_normal_entries(sde, std, device):
    """N(m, s^2 I), whose deviation is sigma_data; with noise and without."""
    prior, y = flat_normal((6,), device=device), measurement().to(device)
    model = PiGDM(ExactScoreModel(prior, sde), projection(), std)
    exact = ExactScoreModel(prior.posterior(projection(), y, std), sde)
    for share in SHARES:
        level = level_at(sde, share, device)
        x_t = states(level, (6,))
        found = model.denoise_at(x_t, level, y.expand(4, -1))
        torch.testing.assert_close(found, exact.denoise_at(x_t, level), rtol=1e-8, atol=1e-8)


def test_the_likelihood_under_moment_matching_is_the_posterior_density(device):
    """So the estimate is differentiated through all of its products.

    To the error of 96 evaluations, whose times depend on sigma_data.
    """
    prior, y = gaussian(device, (4,)), measurement(2).to(device)
    posterior = prior.posterior(projection(2, 4), y, STD)
    x = posterior.sample(3, torch.Generator(device).manual_seed(0))
    expected = log_prob(ExactScoreModel(posterior, VPSDE()), x, num_evaluations=96).log_prob
    for iterations in (None, 2):
        model = MMPS(ExactScoreModel(prior, VPSDE()), projection(2, 4), STD, iterations)
        found = log_prob(model, x, y.expand(3, -1), num_evaluations=96)
        torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=3e-4)


@every
@pytest.mark.parametrize("linear", [True, False])
def test_every_estimate_can_be_differentiated(make, linear):
    """On a mixture, whose denoiser is curved; beside finite differences by torch."""
    model = ExactScoreModel(mixture(shape=(3,)), VPSDE())
    operator = LinearFunctionOperator(lambda x: x[:, 1:] - x[:, :-1], (3,))
    if not linear:
        if make in (PiGDM, DiffPIR):
            return
        operator = FunctionOperator(lambda x: x[:, 1:] * x[:, :-1], (3,))
    given = make(model, operator, STD)
    x_t = states(level_at(VPSDE(), 0.3), (3,), 2).requires_grad_()
    y = randn(2, 2, seed=3)
    assert torch.autograd.gradcheck(lambda x: given.denoise(x, 0.3, y), (x_t,))

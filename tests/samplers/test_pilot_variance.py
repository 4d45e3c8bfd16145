"""The variance of a pilot run: on Gaussians the closed form, to the accuracy of its draws."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import Ancestral, measure_variance, pilot_variance, sample, uniform_log_snr
from scoresde import (
    MLP,
    VESDE,
    VPSDE,
    EDMParametrization,
    EmpiricalDistribution,
    ExactScoreModel,
    Gaussian,
    NetworkScoreModel,
    UsageError,
    ddpm_bound,
)
from tests.analytic import mixture
from tests.reverse import STEPS, best_growth, levels, posterior_variance


def spherical(variance, sde, dim=4, device="cpu"):
    zero, one = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    return ExactScoreModel(Gaussian(zero, variance * one).to(device), sde)


@pytest.mark.parametrize("variance", [0.25, 0.01])
def test_it_is_the_closed_form_of_a_gaussian(variance, device):
    """2,000 samples of 16 numbers: a variance is known to 0.8 %; at three such errors."""
    model = spherical(variance, VPSDE(), 16, device)
    found = pilot_variance(model, num_samples=2000, intervals=1)
    t, s = levels(VPSDE(), *zip(*STEPS, strict=True))
    got = found.growth(s, t).exp() - 1
    exact = best_growth(variance, s, t).exp() - 1
    torch.testing.assert_close(got, exact, rtol=0.025, atol=0)


def test_it_is_the_papers_estimate_by_the_mean_square_of_the_noise(device):
    """sigma^2 / alpha^2 (1 - E|eps_hat|^2 / dim), on 40,000 draws at a middle level: within 2 %."""
    model = ExactScoreModel(mixture(device), VPSDE())
    x_0 = model.target.sample(40_000, torch.Generator(device).manual_seed(0))
    found = measure_variance(model, x_0, intervals=1)
    for time in (0.1, 0.3):
        level = VPSDE().level(torch.tensor([time], dtype=torch.float64))
        eps = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
        x_t = level.alpha.to(device) * x_0 + level.sigma.to(device) * eps
        estimate = 1 - model.noise(x_t, time).square().mean()
        assert found.at(level).item() == pytest.approx(estimate.item(), rel=0.02)


def test_it_holds_for_entries_of_different_variances_and_a_wrong_denoiser(device):
    """The mean over entries of the error, with a bias of the denoiser that the noise's mean square does not see."""
    variances = torch.tensor([1.0, 0.04], dtype=torch.float64)
    exact = ExactScoreModel(Gaussian(torch.zeros_like(variances), variances.diag()).to(device), VESDE())
    level = VESDE().level(VESDE().time(torch.tensor([0.0, 3.0], dtype=torch.float64)))
    x_0 = exact.target.sample(20_000, torch.Generator(device).manual_seed(0))
    expected = posterior_variance(variances[:, None], level).mean(0) / level.noise_level**2
    torch.testing.assert_close(measure_variance(exact, x_0, intervals=1).at(level), expected, rtol=0.03, atol=0)
    other = ExactScoreModel(Gaussian(torch.zeros(2), torch.eye(2)).to(device, torch.float64), VESDE())
    shrink = level.sigma**2 / (level.alpha**2 + level.sigma**2)  # D = (1 - shrink) x_t / alpha
    error = (shrink[None] ** 2 * variances[:, None]).mean(0) + (1 - shrink) ** 2 * level.noise_level**2
    torch.testing.assert_close(
        measure_variance(other, x_0, intervals=1).at(level), error / level.noise_level**2, rtol=0.03, atol=0
    )


def test_few_steps_with_it_are_better_than_with_a_fixed_variance(device):
    """A mixture in 10 steps: the bound of the chain, and what the smaller variance loses of that of the samples."""
    model = ExactScoreModel(mixture(device), VPSDE())
    variance = pilot_variance(model, num_samples=1000)
    x_0 = model.target.sample(4000, torch.Generator(device).manual_seed(1)).mul(8).round().div(8).clamp(-6, 6)
    grid = uniform_log_snr(VPSDE(), 10)
    bounds = {}
    for kind in ("posterior", "beta", variance):
        generator = torch.Generator(device).manual_seed(2)
        bounds[kind] = ddpm_bound(
            model, x_0, grid, bin_width=0.125, low=-6.0, high=6.0, variance=kind, generator=generator
        ).bound
    assert (bounds[variance] - bounds["posterior"]).mean() > 0.05
    assert (bounds[variance] - bounds["beta"]).mean() > 0.05
    exact = model.target.sample(20_000, torch.Generator(device).manual_seed(3)).var(0).sum()
    errors = {
        kind: (sample(model, Ancestral(kind), 20_000, num_steps=10, batch_size=20_000).x.var(0).sum() / exact - 1).abs()
        for kind in ("posterior", variance)
    }
    assert errors[variance] < 0.4 * errors["posterior"]


def test_with_one_number_its_sampler_is_a_table_between_the_two_fixed_ones(device):
    model = spherical(0.4, VPSDE(), device=device)
    grid = uniform_log_snr(VPSDE(), 12)
    low, middle, high = (
        Ancestral(v).table(model, grid) for v in ("posterior", pilot_variance(model, intervals=1), "beta")
    )
    assert torch.equal(low.a, middle.a)
    assert torch.equal(low.b, middle.b)
    assert (low.c[:-1] < middle.c[:-1]).all()
    widest = high.c * high.arrival.alpha / high.level.alpha  # of data of a very large variance
    assert (middle.c[:8] < high.c[:8]).all()
    assert (middle.c[:-1] <= widest[:-1]).all()
    assert middle.c[-1] == 0


def signs(device, sde=None):
    """The exact model of data that are -1 or 1: D = tanh(alpha x / sigma^2), and the variance of x_0 is 1 - D^2."""
    x_0 = torch.tensor([[-1.0], [1.0]], dtype=torch.float64, device=device)
    return ExactScoreModel(EmpiricalDistribution(x_0), VPSDE() if sde is None else sde)


def test_in_each_interval_it_is_the_variance_that_is_left_there(device):
    model = signs(device)
    x_0 = model.target.sample(40_000, torch.Generator(device).manual_seed(0))
    found = measure_variance(model, x_0)
    edges = torch.tensor([-1.0, *found.edges, 1.0], dtype=torch.float64)
    assert len(edges) == 33
    middle = (edges[1:] + edges[:-1]) / 2
    level = VPSDE().level(VPSDE().time(torch.tensor([0.0], dtype=torch.float64)))  # D takes all values
    left = (1 - middle**2) * torch.exp(level.log_snr)
    torch.testing.assert_close(found.at(level)[0], left.clamp(max=1), rtol=0.1, atol=0.01)


def test_by_interval_the_bound_is_better_than_with_one_number(device):
    model = signs(device)
    x_0 = model.target.sample(4000, torch.Generator(device).manual_seed(1))
    bounds = [
        ddpm_bound(
            model,
            x_0,
            uniform_log_snr(VPSDE(), 10),
            bin_width=2.0,
            low=-1.0,
            high=1.0,
            variance=pilot_variance(model, intervals=intervals),
            generator=torch.Generator(device).manual_seed(2),
        ).bound.mean()
        for intervals in (1, 32)
    ]
    assert -math.log(2) > bounds[1] > bounds[0] + 0.1


def test_data_of_one_value_have_one_interval(device):
    model = spherical(0.25, VPSDE(), device=device)
    assert measure_variance(model, torch.zeros(4, 4, dtype=torch.float64, device=device)).edges == ()


def test_it_is_repeatable_and_takes_conditions(device):
    network = MLP(2, width=8, depth=1, num_classes=3).to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator(device).manual_seed(0))
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (2,))
    first, again, other = (pilot_variance(model, torch.tensor(labels), 20) for labels in ([0, 1], [0, 1], [2, 2]))
    assert first == again
    assert first != other
    with pytest.raises(UsageError, match="cond"):
        pilot_variance(model, None, 20)


def test_mistakes_are_named(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    with pytest.raises(UsageError, match="num_samples=0"):
        pilot_variance(model, num_samples=0)
    with pytest.raises(UsageError, match="intervals=0"):
        pilot_variance(model, intervals=0)
    with pytest.raises(UsageError, match="x_0 of shape"):
        measure_variance(model, torch.zeros(4, 3, dtype=torch.float64))

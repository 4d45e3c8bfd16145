"""DDIM and ancestral sampling are the published updates."""

from __future__ import annotations

import pytest
import torch

from samplers import (
    DDIM,
    Ancestral,
    Heun,
    NormPredictorCorrector,
    PredictorCorrector,
    ReverseDiffusion,
    Trajectory,
    prepare,
    sample,
    uniform_log_snr,
    uniform_time,
)
from scoresde import (
    MLP,
    VESDE,
    VPSDE,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    MeasuredVariance,
    NetworkScoreModel,
    ThresholdedModel,
    UsageError,
)
from scoresde.sde import bridge
from tests.analytic import SDES, mixture
from tests.convergence import ProbeNoise, noise_for
from tests.reverse import KnownVariance, TwoOutputs, posterior_variance
from tests.samplers_under_test import name


def test_ancestral_sampling_is_ddim_at_eta_one(sde):
    model = ExactScoreModel(mixture(), sde)
    grid = Ancestral().default_grid(model, 20)
    first, second = Ancestral().table(model, grid), DDIM(eta=1.0).table(model, grid)
    for part in "abc":  # written differently, so equal but for rounding
        torch.testing.assert_close(getattr(first, part), getattr(second, part), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_sampling_of_a_chain_is_ddpm(variance, device):
    """Ho et al. 2020, algorithm 2, written out: mean of equation 11, variance betatilde or beta."""
    sde = DiscreteVPSDE(num_levels=50, beta_start=1e-3, beta_end=0.2)
    model = ExactScoreModel(mixture(device), sde)
    betas = sde.variances()
    alpha_bar = (1 - betas).cumprod(0)
    noise = noise_for(32, device)
    x = x_T = noise.normal(0, (2,), torch.float64)
    for row, i in enumerate(range(49, -1, -1)):
        beta, abar = betas[i].item(), alpha_bar[i].item()
        abar_before = alpha_bar[i - 1].item() if i else 1.0
        eps_hat = model.noise(x, (i + 1) / 50)
        x = (x - beta / (1 - abar) ** 0.5 * eps_hat) / (1 - beta) ** 0.5
        if i:
            added = beta if variance == "beta" else beta * (1 - abar_before) / (1 - abar)
            x = x + added**0.5 * noise.normal(row + 1, (2,), torch.float64)
    ours = Ancestral(variance).run(model, x_T, uniform_time(sde, 50), noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-12)


def test_ancestral_sampling_of_a_ladder_is_smlds(device):
    """Song et al. 2021, appendix F: x + (s_i^2 - s_{i-1}^2) score + sqrt(s_{i-1}^2 (s_i^2 - s_{i-1}^2) / s_i^2) z."""
    sde = VESDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 40)[:-1]
    sigmas = sde.sigma(grid).tolist()
    x = x_T = sigmas[0] * noise.normal(0, (2,), torch.float64)
    for row, (t, high, low) in enumerate(zip(grid.tolist(), sigmas, sigmas[1:], strict=False)):
        gap = high**2 - low**2
        z = noise.normal(row + 1, (2,), torch.float64)
        x = x + gap * model.score(x, t) + (low**2 * gap / high**2) ** 0.5 * z
    ours = Ancestral().run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral("beta"), ReverseDiffusion()], ids=name)
def test_few_steps_stay_near_the_data(sampler):
    """score_sde's VP is NaN below 20 steps; here the RMS is within 1.5 times the data's from 10 steps on, 10 below.

    Reverse diffusion and DDPM's larger variance add the forward step's noise, which in 2 or 3 steps from 50 or 80 times
    the data's scale is what remains: so few are refused.
    """
    target = mixture()
    rms = target.sample(5000, torch.Generator().manual_seed(0)).square().mean().sqrt()
    for sde_name, sde in SDES.items():
        model = ExactScoreModel(target, sde)
        for num_steps in (2, 3, 5, 7, 10, 20):
            if num_steps <= sampler.min_steps:  # and one for the last step
                with pytest.raises(UsageError, match=f"num_steps={num_steps}: .* needs at least 5"):
                    sample(model, sampler, 5, num_steps=num_steps)
                continue
            x = sample(model, sampler, 500, num_steps=num_steps).x
            bound = 1.5 if num_steps >= 10 else 10
            assert x.square().mean().sqrt() < bound * rms, f"{sde_name}, {num_steps} steps"


# --- variances between the two fixed ones ---------------------------------------------------------------------------


def independent(variances, sde):
    """The exact model of independent Gaussians around 0; float64."""
    variances = torch.as_tensor(variances, dtype=torch.float64)
    return ExactScoreModel(Gaussian(torch.zeros_like(variances), variances.diag()), sde)


def chain_variances(sampler, model, grid):
    """The exact variances of a chain's end, started from the exact marginal: it is affine, as in `chain_moments`."""
    level = model.sde.level(grid[0])
    dim = model.shape[0]
    x_T = torch.zeros(len(grid) + 1, dim, dtype=torch.float64)
    x_T[-1] = 1
    noise = ProbeNoise(len(x_T), "cpu")
    y = sampler.prepare(model, grid)(x_T, noise).x
    start = level.alpha**2 * torch.diagonal(model_variances(model)) + level.sigma**2
    coefficients = (y[1:] - y[0]).square()
    return coefficients[:-1].sum(0) + coefficients[-1] * start


def model_variances(model):
    """The covariance of an exact model of a Gaussian, or of one around it."""
    inner = model.model if isinstance(model, KnownVariance) else model
    return (
        inner.target.mixture.rotations[0]
        @ inner.target.mixture.variances[0].diag()
        @ (inner.target.mixture.rotations[0].T)
    )


def test_with_the_true_variance_few_steps_have_the_exact_marginal(sde):
    """25 steps: entry by entry for the learned one, for one number a level if all entries have the same variance."""
    grid = uniform_log_snr(sde, 25)[:-1]
    end = sde.level(grid[-1])
    log_snr = torch.linspace(*sde.span().log_snr.tolist(), 20_001, dtype=torch.float64)
    level = sde.level(sde.time(log_snr).clamp(sde.t_min, sde.t_max))
    share = posterior_variance(0.3, level) / level.noise_level**2
    measured = MeasuredVariance(tuple(level.log_snr.tolist()), tuple(share.tolist()))
    several = torch.tensor([0.8, 0.3, 0.02], dtype=torch.float64)
    model = independent(several, sde)
    cases = [
        (Ancestral("learned"), KnownVariance(model, grid, several), several),
        (Ancestral(measured), independent([0.3, 0.3], sde), torch.full((2,), 0.3, dtype=torch.float64)),
    ]
    for sampler, exact, variances in cases:
        got = chain_variances(sampler, exact, grid)
        torch.testing.assert_close(got, end.alpha**2 * variances + end.sigma**2, rtol=1e-6, atol=0)
        wrong = chain_variances(Ancestral(), exact, grid)
        assert ((wrong - (end.alpha**2 * variances + end.sigma**2)).abs() > 1e-3 * variances).all()


class Constant(torch.nn.Module):
    """A second output that is a number everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, c_noise, cond=None):
        return torch.full_like(x, self.value)


def two_outputs(second, device):
    """A model with random weights whose second output is given, and the same without it; float64."""
    network = MLP(2, width=16, depth=1).double().to(device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return (
        NetworkScoreModel(made, VPSDE(), EDMParametrization(0.7), (2,))
        for made in (TwoOutputs(network, second), network)
    )


@pytest.mark.parametrize(("output", "variance"), [(-1.0, "posterior"), (1.0, "beta")])
def test_the_learned_variance_has_the_fixed_ones_at_its_ends(output, variance, device):
    """Also with a callback, a projection and the denoiser of a thresholded model: the same numbers at every row."""
    learned, plain = two_outputs(Constant(output), device)
    trajectories = []
    for model, sampler in ((learned, Ancestral("learned")), (plain, Ancestral(variance))):
        seen, places = Trajectory(), []

        def project(row, level, x, places=places):
            places.append((row, level.t.item()))
            return x.clamp(-2, 2)

        x, nfe = sample(
            ThresholdedModel(model, -1.5, 1.5), sampler, 5, num_steps=9, batch_size=2, callback=seen, project=project
        )
        trajectories.append((x, seen.x_t, seen.x0_hat, nfe, places))
    for one, other in zip(*trajectories, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        else:
            assert one == other


def test_other_samplers_do_not_see_the_second_output(device):
    learned, plain = two_outputs(Constant(0.4), device)
    for sampler in (Heun(), Ancestral(), PredictorCorrector()):
        one, other = (sample(model, sampler, 4, num_steps=8).x for model in (learned, plain))
        assert torch.equal(one, other), sampler


def test_a_variance_by_interval_is_refused_as_predictor_in_one_line():
    measured = Ancestral(MeasuredVariance((-1.0, 1.0), ((0.1,) * 32, (0.2,) * 32), tuple(range(31))))
    with pytest.raises(UsageError, match=r"variance=by intervals\): its noise depends on the state") as raised:
        PredictorCorrector(measured)
    assert len(str(raised.value)) < 240


def test_a_variance_by_interval_is_that_of_each_entry_written_out(device):
    model, noise = ExactScoreModel(mixture(device), VPSDE()), noise_for(16, device)
    variance = MeasuredVariance((-10.0, 10.0), ((0.0, 0.9), (0.1, 0.5)), (0.0,))
    grid = uniform_log_snr(VPSDE(), 4)
    level = VPSDE().level(grid[:-1])
    y = x_T = noise.normal(0, (2,), torch.float64)
    for k in range(3):
        t, s = level[k], level[k + 1]
        on_x0, on_xt, std = bridge(s, t)
        x0_hat = model.denoise(y, t.t.item())
        narrow, wide = (std * torch.exp(variance.growth(s, t) / 2)).to(device)
        deviation = torch.where(x0_hat > 0, wide, narrow)
        y = on_xt.item() * y + on_x0.item() * x0_hat + deviation * noise.normal(k + 1, (2,), torch.float64)
    expected = model.denoise(y, level.t[3].item())
    torch.testing.assert_close(Ancestral(variance).run(model, x_T, grid, noise), expected, rtol=1e-9, atol=1e-9)


def test_where_the_learned_variance_cannot_be_had_is_named(device):
    learned, plain = two_outputs(Constant(0.0), device)
    for model in (plain, ExactScoreModel(mixture(device), VPSDE()), learned.under(VESDE())):
        with pytest.raises(UsageError, match="variance='learned': this model has learned none"):
            sample(model, Ancestral("learned"), 3, num_steps=5)
    for kind in (PredictorCorrector, NormPredictorCorrector):
        with pytest.raises(UsageError, match=r"predictor=Ancestral\(variance='learned'\): its noise depends on"):
            kind(Ancestral("learned"))
    with pytest.raises(UsageError, match="cannot be recorded"):
        prepare(learned, Ancestral("learned"), num_steps=5, cuda_graph=True)

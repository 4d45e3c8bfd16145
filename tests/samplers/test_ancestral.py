"""DDIM and ancestral sampling are the published updates."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, Ancestral, ReverseDiffusion, sample, uniform_time
from scoresde import VESDE, DiscreteVPSDE, ExactScoreModel, UsageError
from tests.analytic import SDES, mixture
from tests.convergence import noise_for
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

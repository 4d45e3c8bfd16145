"""Reverse diffusion is the published update."""

from __future__ import annotations

import torch

from samplers import ReverseDiffusion, uniform_time
from scoresde import VESDE, DiscreteVPSDE, ExactScoreModel
from tests.analytic import mixture
from tests.convergence import noise_for


def test_reverse_diffusion_is_song_et_als_on_a_chain(device):
    """Song et al. 2021, equation 46 and appendix E: x + (1 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    sde = DiscreteVPSDE(num_levels=50, beta_start=1e-3, beta_end=0.2)
    model, noise, betas = ExactScoreModel(mixture(device), sde), noise_for(32, device), sde.variances()
    x = x_T = noise.normal(0, (2,), torch.float64)
    for row, i in enumerate(range(49, 0, -1)):
        beta = betas[i].item()
        z = noise.normal(row + 1, (2,), torch.float64)
        x = (2 - (1 - beta) ** 0.5) * x + beta * model.score(x, (i + 1) / 50) + beta**0.5 * z
    ours = ReverseDiffusion().run(model, x_T, uniform_time(sde, 50)[:-1], noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-10)


def test_reverse_diffusion_is_song_et_als_on_a_ladder(device):
    """Song et al. 2021, appendix E, on VE: x + (s_i^2 - s_{i-1}^2) score + sqrt(s_i^2 - s_{i-1}^2) z."""
    sde = VESDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 40)[:-1]
    sigmas = sde.sigma(grid).tolist()
    x = x_T = sigmas[0] * noise.normal(0, (2,), torch.float64)
    for row, (t, high, low) in enumerate(zip(grid.tolist(), sigmas, sigmas[1:], strict=False)):
        gap = high**2 - low**2
        x = x + gap * model.score(x, t) + gap**0.5 * noise.normal(row + 1, (2,), torch.float64)
    ours = ReverseDiffusion().run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)

"""The trigonometric solver: Adams's method between noisy levels, and a last step to clean data itself."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import Adams, Trigonometric, phi_to_clean
from scoresde import EDMSDE, ExactScoreModel, Gaussian
from tests.analytic import gaussian
from tests.convergence import inner_grid, noise_for


def ends_of(sampler, model, grid, num_samples):
    """Samples of the prior where a grid starts, and where the sampler leads them."""
    noise = noise_for(num_samples, model.device)
    prepared = sampler.prepare(model, grid)
    x_T = prepared.prior(noise)
    return x_T, prepared(x_T, noise).x


def test_between_noisy_levels_it_is_adams(sde):
    """So its order is theirs, which is measured there."""
    model = ExactScoreModel(gaussian(), sde)
    grid = inner_grid(sde, 8, "log_snr", first=3.0, last=0.1)
    for num_values in (1, 2, 3, 4):
        ours = Trigonometric(num_values).table(model, grid)
        adams = Adams(num_values, corrector=True).table(model, grid)
        for part in "abcdpq":
            assert torch.equal(getattr(ours, part), getattr(adams, part)), f"{part} of {num_values} values"


def test_a_gaussian_of_its_scale_is_carried_to_clean_data_exactly(sde, device):
    """F is zero there: y does not move, and x_0 = s x_T / sqrt(s^2 alpha^2 + sigma^2), up to the mean."""
    target = Gaussian(torch.zeros(3, dtype=torch.float64), 0.49 * torch.eye(3, dtype=torch.float64)).to(device)
    model = ExactScoreModel(target, sde)
    assert model.sigma_data == pytest.approx(0.7)
    for num_steps in (1, 2, 7):
        grid = Trigonometric().grid(model, num_steps)
        x_T, x_0 = ends_of(Trigonometric(), model, grid, 5)
        level = sde.level(grid[0])
        expected = 0.7 * x_T / math.sqrt(0.49 * level.alpha.item() ** 2 + level.sigma.item() ** 2)
        torch.testing.assert_close(x_0, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_values", [1, 2])
def test_its_order_holds_down_to_clean_data(num_values, device):
    """No truncation is left: the end is that of the exact flow at noise level 0."""
    target = Gaussian(
        torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([[0.5, 0.1], [0.1, 0.2]], dtype=torch.float64)
    ).to(device)
    model = ExactScoreModel(target, EDMSDE(t_min=1e-6))
    errors = []
    for num_steps in (40, 80, 160):
        grid = phi_to_clean(model.sde, num_steps, power=2.0)
        x_T, x_0 = ends_of(Trigonometric(num_values), model, grid, 8)
        level = model.sde.level(grid[0]).to(device, torch.float64)
        clean = target.probability_flow(x_T, (level.alpha, level.sigma), (torch.ones_like(level.t), 0 * level.t))
        errors.append((x_0 - clean).square().mean().sqrt().item())
    assert math.log2(errors[-2] / errors[-1]) > num_values + 0.9


def test_its_nodes_are_powers_of_phi_down_to_the_models_least_noise(sde):
    grid = phi_to_clean(sde, 10, power=1.0, sigma_data=2.0)
    phi = torch.atan(sde.noise_level(grid[:-1]) / 2)
    torch.testing.assert_close(phi, phi[0] * (1 - torch.arange(10, dtype=phi.dtype) / 10), rtol=1e-6, atol=1e-8)
    assert grid[-1] == 0
    assert phi_to_clean(sde, 1000, power=3.0)[-2] >= sde.t_min * (1 - 1e-9)

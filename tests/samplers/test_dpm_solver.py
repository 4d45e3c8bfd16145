"""DPM-Solver and DPM-Solver++ are the published updates."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, DPMSolver, DPMSolverSingle
from scoresde import VPSDE, ExactScoreModel
from tests.analytic import mixture
from tests.convergence import inner_grid, noise_for


@pytest.mark.parametrize("kind", [DPMSolver, DPMSolverSingle])
def test_order_one_is_ddim(kind, sde, device):
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 6, "log_snr")
    x_T = sde.sigma(grid[0]).item() * noise.normal(0, (2,), torch.float64)
    expected = DDIM().run(model, x_T, grid, noise)
    for integrand in ("denoised", "noise"):
        ours = kind(1, integrand).run(model, x_T, grid, noise)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture
def steps(device):
    """A model, its samples at a grid's first time, and (start, end, h) of each step, h in half log-SNR."""
    sde = VPSDE()
    grid = inner_grid(sde, 5, "time")
    levels = sde.level(grid)
    each = [(levels[k], levels[k + 1], 0.5 * (levels.log_snr[k + 1] - levels.log_snr[k])) for k in range(5)]
    x_T = noise_for(8, device).normal(0, (2,), torch.float64)
    return ExactScoreModel(mixture(device), sde), grid, x_T, each


def test_2s_of_dpm_solver_is_lu_et_als_written_out(steps):
    """Lu et al. 2022a, algorithm 1: r_1 = 1/2, in the noise."""
    model, grid, x_T, each = steps
    x = x_T
    for start, end, h in each:
        middle = model.sde.level(model.sde.time(start.log_snr + h))
        stage = middle.alpha / start.alpha * x - middle.sigma * torch.expm1(h / 2) * model.noise(x, start.t)
        x = end.alpha / start.alpha * x - end.sigma * torch.expm1(h) * model.noise(stage, middle.t)
    ours = DPMSolverSingle(2, "noise").run(model, x_T, grid, noise_for(8, model.device))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-11)


def test_2m_of_dpm_solver_plus_plus_is_lu_et_als_written_out(steps):
    """Lu et al. 2022b, algorithm 2: D = (1 + 1 / (2 r)) D_k - 1 / (2 r) D_{k-1}, r the ratio of steps."""
    model, grid, x_T, each = steps
    x, before, h_before = x_T, None, None
    for start, end, h in each:
        x0_hat = model.denoise(x, start.t)
        estimate = x0_hat
        if before is not None:
            weight = h / (2 * h_before)
            estimate = (1 + weight) * x0_hat - weight * before
        x = end.sigma / start.sigma * x - end.alpha * torch.expm1(-h) * estimate
        before, h_before = x0_hat, h
    ours = DPMSolver(2).run(model, x_T, grid, noise_for(8, model.device))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-11)

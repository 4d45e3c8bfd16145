"""Runge-Kutta methods are what their rows say, written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from samplers import EDM, Heun, Midpoint
from scoresde import EDMSDE, VPSDE, ExactScoreModel
from tests.analytic import mixture
from tests.convergence import inner_grid, noise_for


def test_heun_rows_are_heun_written_out(device):
    sde = VPSDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 4, "log_snr")
    x = x_T = noise.normal(0, (2,), torch.float64)
    for t, s in itertools.pairwise(grid):
        start, end = sde.level(t), sde.level(s)
        rise = end.noise_level - start.noise_level
        slope = model.noise(x, t)
        stage = end.alpha * (x / start.alpha + rise * slope)
        x = end.alpha * (x / start.alpha + rise * (slope + model.noise(stage, s)) / 2)
    torch.testing.assert_close(Heun().run(model, x_T, grid, noise), x, rtol=0, atol=1e-12)


def test_midpoint_rows_are_the_midpoint_method_written_out(device):
    sde = VPSDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 4, "log_snr")
    x = x_T = noise.normal(0, (2,), torch.float64)
    for t, s in itertools.pairwise(grid):
        start, end = sde.level(t), sde.level(s)
        rise = end.noise_level - start.noise_level
        middle = sde.at_noise_level(start.noise_level + rise / 2)
        stage = middle.alpha * (x / start.alpha + rise / 2 * model.noise(x, t))
        x = end.alpha * (x / start.alpha + rise * model.noise(stage, middle.t))
    torch.testing.assert_close(Midpoint("noise").run(model, x_T, grid, noise), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("to_clean", [False, True])
@pytest.mark.parametrize("smallest", [0.2, 0.0])
def test_edm_is_karras_et_als_written_out(device, smallest, to_clean):
    """Karras et al. 2022, algorithm 2, under their SDE: churned steps, here all but the first, whose start is exact.

    The last is Euler's, to clean data.
    """
    sde, churn, scale = EDMSDE(), 8.0, 1.003
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    sigmas = inner_grid(sde, 6, "log_snr").tolist()
    gamma = min(churn / 7, math.sqrt(2) - 1)  # of 7 levels
    x = x_T = sigmas[0] * noise.normal(0, (2,), torch.float64)
    for k, (sigma, after) in enumerate(itertools.pairwise([*sigmas, 0.0] if to_clean else sigmas)):
        above = sigma
        if k and smallest <= sigma <= 3.0:
            above = (1 + gamma) * sigma
            x = x + scale * math.sqrt(above**2 - sigma**2) * noise.normal(2 * k, (2,), torch.float64)
        slope = (x - model.denoise(x, above)) / above
        stage = x + (after - above) * slope
        last = slope if after == 0 else (stage - model.denoise(stage, after)) / after
        x = x + (after - above) * (slope + last) / 2
    grid = torch.tensor([*sigmas, 0.0] if to_clean else sigmas, dtype=torch.float64)
    ours = EDM(churn, churn_min=smallest, churn_max=3.0, churn_scale=scale).run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


def test_edm_without_churn_is_heun(sde):
    model = ExactScoreModel(mixture(), sde)
    grid = Heun().default_grid(model, 9)
    edm, heun = EDM(churn=0.0).table(model, grid), Heun().table(model, grid)
    assert all(torch.equal(getattr(edm, part), getattr(heun, part)) for part in "abcdpq")

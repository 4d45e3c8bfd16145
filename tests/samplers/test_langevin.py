"""Langevin dynamics: its known bias, and the published annealing."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, AnnealedLangevin, PredictorCorrector, uniform_time
from samplers.langevin import MeasuredSnr, langevin_table
from samplers.table import Loop
from scoresde import VESDE, ExactScoreModel, UsageError
from tests.analytic import mixture
from tests.convergence import chain_moments, inner_grid, noise_for


def test_a_langevin_chain_has_its_known_bias(device):
    # on N(0, v) the chain y' = (1 - e/v) y + sqrt(2e) z settles at the variance v / (1 - e / (2 v))
    sde, snr, variance = VESDE(), 0.2, 0.3
    grid = inner_grid(sde, 1, "time", first=1.001, last=1.0)
    level = sde.level(grid[-1])
    v = (variance + level.sigma**2).item()
    step = 2 * (snr * level.sigma.item()) ** 2
    _, got = chain_moments(AnnealedLangevin(snr, corrector_steps=400), sde, grid, 0.0, variance, device)
    assert got == pytest.approx(v / (1 - step / (2 * v)), rel=1e-9)


@pytest.mark.parametrize("snr", [0.1, 0.5, 0.9])
def test_leimkuhler_matthews_keeps_a_gaussian_for_every_stable_step(sde, snr):
    """On N(0, v) the chain y' = A y + c z + d z_before settles at (c^2 + d^2 + 2 A c d) / (1 - A^2), which is v."""
    variance = torch.tensor(0.3, dtype=torch.float64)
    level = sde.level(inner_grid(sde, 6, "log_snr"))
    v = level.alpha**2 * variance + level.sigma**2
    # eps_hat of this Gaussian has the mean square sigma^2 / v, which makes a step 2 snr^2 v
    ratio = snr * torch.sqrt(v) / level.sigma
    table = langevin_table(level, ratio, 1, "leimkuhler_matthews")
    on_y = table.a + table.b[:, 0] * level.alpha * variance / v  # D = alpha variance y / v
    torch.testing.assert_close(on_y, torch.full_like(on_y, 1 - 2 * snr**2))
    settled = (table.c**2 + table.d**2 + 2 * on_y * table.c * table.d) / (1 - on_y**2)
    torch.testing.assert_close(settled, v)


def test_a_measured_snr_is_linear_in_the_log_snr_between_its_levels(sde):
    grid = inner_grid(sde, 3, "log_snr")
    log_snr = tuple(sde.log_snr(grid).tolist())
    measured = MeasuredSnr(log_snr, (0.2, 0.4, 2.0, 1.0))
    assert measured.at(sde.level(grid)).tolist() == pytest.approx([0.2, 0.4, 2.0, 1.0])
    middle = sde.level(sde.time(torch.tensor([(log_snr[1] + log_snr[2]) / 2], dtype=torch.float64)))
    assert measured.at(middle).item() == pytest.approx(1.2, rel=1e-6)


@pytest.mark.parametrize(("log_snr", "snr"), [((1.0, 0.0), (1.0, 1.0)), ((0.0, 1.0), (1.0,)), ((0.0,), (1.0,))])
def test_a_measured_snr_of_no_levels_is_refused(log_snr, snr):
    with pytest.raises(UsageError, match="log_snr, snr of MeasuredSnr"):
        MeasuredSnr(log_snr, snr)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UsageError, match="scheme='heun': need 'euler' or 'leimkuhler_matthews'"):
        PredictorCorrector(scheme="heun")


def test_a_step_at_a_fixed_level_is_langevin_written_out(sde, device):
    """x + e score + sqrt(2 e) z with e = 2 (snr sigma)^2, several times at one level."""
    model, noise, snr = ExactScoreModel(mixture(device), sde), noise_for(32, device), 0.3
    level = sde.level(inner_grid(sde, 1, "time")[:1])
    t, sigma = level.t.item(), level.sigma.item()
    x = x_T = sigma * noise.normal(0, (2,), torch.float64)
    e = 2 * (snr * sigma) ** 2
    for row in range(3):
        x = x + e * model.score(x, t) + (2 * e) ** 0.5 * noise.normal(row + 1, (2,), torch.float64)
    ours = Loop(langevin_table(level, snr, 3), model, x_T)(x_T, noise)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_is_smld(device):
    """Song and Ermon 2019, algorithm 1: steps e sigma_i^2 / sigma_L^2, here with e / 2 = 2 (snr sigma_L)^2."""
    sde, snr = VESDE(), 0.2
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 8)[:-1]
    sigmas = sde.sigma(grid[1:]).tolist()
    e = 4 * (snr * sigmas[-1]) ** 2
    x = x_T = 50 * noise.normal(0, (2,), torch.float64)
    row = 0
    for t, sigma in zip(grid[1:].tolist(), sigmas, strict=True):
        step = e * sigma**2 / sigmas[-1] ** 2
        for _ in range(3):
            row += 1
            x = x + step / 2 * model.score(x, t) + step**0.5 * noise.normal(row, (2,), torch.float64)
    ours = AnnealedLangevin(snr, corrector_steps=3).run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_is_predictor_corrector_without_the_predictor(sde):
    model = ExactScoreModel(mixture(), sde)
    grid = AnnealedLangevin().default_grid(model, 9)
    both = PredictorCorrector(DDIM(), snr=0.3, corrector_steps=2).table(model, grid)
    alone = AnnealedLangevin(snr=0.3, corrector_steps=2).table(model, grid)
    corrector = torch.tensor([row % 3 != 0 for row in range(len(both))])
    corrector[-1] = True  # the last row is the denoiser in both
    for part in "abc":
        assert torch.equal(getattr(both, part)[corrector], getattr(alone, part))
    predictor = DDIM().table(model, grid)
    assert torch.equal(both.a[::3], predictor.a)

"""What samplers declare is what they do, and what every sampler has in common."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from samplers import (
    DDIM,
    DEIS,
    EDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    Trigonometric,
    UniPC,
    concatenate,
    power_phi,
    prepare,
    quadratic_time,
    sample,
    uniform_log_snr,
    uniform_time,
)
from scoresde import VESDE, VPSDE, ExactScoreModel, UsageError
from tests.analytic import SDES, gaussian, mixture
from tests.convergence import ProbeNoise, inner_grid, noise_for
from tests.samplers_under_test import SAMPLERS, STEPS, TABLES, name

# --- declarations ---------------------------------------------------------------------------------------------------


def test_samplers_are_frozen():
    for sampler in SAMPLERS:
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            sampler.order = 7


def test_declared_noise_is_what_the_table_has(sde):
    model = ExactScoreModel(mixture(), sde)
    for sampler in TABLES:
        table = sampler.table(model, sampler.default_grid(model, 7))
        assert (table.c[:-1] > 0).any() == (sampler.noise != "none"), sampler


def test_one_step_methods_are_those_whose_steps_do_not_know_each_other(sde):
    model, level = ExactScoreModel(mixture(), sde), sde.level(inner_grid(sde, 7, "log_snr"))
    for sampler in STEPS:
        together = sampler.steps(model, level[:-1], level[1:])
        alone = concatenate([sampler.steps(model, level[k : k + 1], level[k + 1 : k + 2]) for k in range(7)])
        pairs = [(getattr(together, part), getattr(alone, part)) for part in "abcdpq"]
        same = all(torch.allclose(first, second, rtol=1e-12, atol=0) for first, second in pairs)
        assert same == sampler.one_step, sampler


def test_rows_are_evaluations_and_the_last_row_is_the_denoiser(sde):
    model = ExactScoreModel(mixture(), sde)
    for sampler in STEPS:
        grid = sampler.default_grid(model, 7)
        table = sampler.table(model, grid)
        calls = []
        x_T = torch.zeros(2, 2, dtype=torch.float64)
        sampler.run(model, x_T, grid, noise_for(2), callback=lambda row, *rest, calls=calls: calls.append(row))
        assert calls == list(range(len(table))), sampler
        assert len(table) == sampler.num_evaluations(model, grid), sampler
        assert (table.a[-1], table.b[-1, 0], table.c[-1]) == (0, 1, 0), sampler
        assert ((table.level.t >= sde.t_min * (1 - 1e-9)) & (table.level.t <= sde.t_max)).all(), sampler
        assert len(str(table).splitlines()) == len(table) + 1, sampler


# --- few steps ------------------------------------------------------------------------------------------------------


def test_one_step_is_the_denoiser_at_t_max(sde):
    model = ExactScoreModel(mixture(), sde)
    x_T = sde.prior_std() * noise_for(3).normal(0, (2,), torch.float64)
    grid = torch.tensor([sde.t_max, 0.0], dtype=torch.float64)
    for sampler in SAMPLERS:
        if isinstance(sampler, ProbabilityFlow | Trigonometric):
            continue  # one chooses its steps, the other steps to clean data by its own rule
        x = sample(model, sampler, 3, grid=grid).x
        torch.testing.assert_close(x, model.denoise(x_T, sde.t_max), msg=lambda text, at=sampler: f"{at}: {text}")


@pytest.mark.parametrize("sampler", TABLES, ids=name)
def test_few_steps_are_finite(sampler):
    for sde_name, sde in SDES.items():
        model = ExactScoreModel(mixture(), sde)
        for grid in (uniform_log_snr, power_phi, quadratic_time, uniform_time):
            for num_steps in (1, sampler.min_steps + 1, sampler.min_steps + 2):
                x, _ = sample(model, sampler, 20, grid=grid(sde, num_steps))
                assert x.isfinite().all(), f"{sde_name}, {grid.__name__}, {num_steps}"


def test_too_few_steps_are_named():
    with pytest.raises(UsageError, match=r"num_steps=3: DEIS\(order=3\) needs at least 4"):
        sample(ExactScoreModel(mixture(), VPSDE()), DEIS(3), 3, num_steps=3)


# --- settings and noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: EulerMaruyama(eta=-1), "eta=-1"),
        (lambda: EulerMaruyama(eta=math.inf), "eta=inf"),
        (lambda: SDEDPMSolver(eta=0), "eta=0"),
        (lambda: Ancestral(variance="both"), "variance='both'"),
        (lambda: UniPC(variant="B3"), "variant='B3'"),
        (lambda: Adams(5), "num_values=5"),
        (lambda: EDM(churn_min=2, churn_max=1), "churn_min=2, churn_max=1"),
        (lambda: AnnealedLangevin(snr=1.0), "snr=1.0"),
        (lambda: PredictorCorrector(snr=0), "snr=0"),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps=0"),
        (lambda: ProbabilityFlow(rtol=0), "rtol=0"),
    ],
)
def test_bad_settings_of_samplers_are_named(make, complaint):
    with pytest.raises(UsageError, match=complaint):
        make()


def test_path_noise_is_made_of_seed_and_indices():
    model = ExactScoreModel(gaussian(), VPSDE())
    x_T = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"noise=ProbeNoise: .* needs Noise\(seed, indices\)"):
        prepare(model, SDEDPMSolverSingle(), num_steps=3)(x_T, ProbeNoise(4, "cpu"))


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Ancestral(), ProbabilityFlow(1e-9, 1e-9)], ids=name)
def test_vp_and_ve_are_the_same_up_to_scale(sampler, device):
    vp, ve = VPSDE(), VESDE(sigma_min=0.001, sigma_max=200.0)
    target = mixture(device)
    grid = inner_grid(vp, 25, "log_snr", first=50.0, last=0.01)
    grid_ve = ve.time(vp.log_snr(grid))
    clean, clean_ve = (torch.cat([g, g.new_zeros(1)]) for g in (grid, grid_ve))
    noise = noise_for(32, device)
    x_T = noise.normal(0, (2,), torch.float64)
    result = sampler.run(ExactScoreModel(target, vp), x_T, clean, noise)
    result_ve = sampler.run(ExactScoreModel(target, ve), x_T / vp.alpha(grid[0]).item(), clean_ve, noise)
    torch.testing.assert_close(result_ve, result, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", TABLES, ids=name)
def test_the_loop_never_waits_for_the_device(sampler, device):
    model = ExactScoreModel(mixture(device), VPSDE())
    grid, noise = sampler.default_grid(model, 8), noise_for(4, device)
    x_T = noise.normal(0, (2,), torch.float64)
    prepared = sampler.prepare(model, grid)
    prepared.loop(x_T)  # the copy of the levels happens before the loop
    torch.cuda.synchronize()
    calls = []

    def watch(row, level, x_t, x0_hat):  # from the first evaluation on, any wait is an error
        calls.append(row)
        torch.cuda.set_sync_debug_mode("error")

    try:
        prepared(x_T, noise, callback=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(calls) == len(prepared.table)

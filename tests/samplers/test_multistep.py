"""Multistep methods: what their start costs, and the methods that they are with one value."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, DEIS, Adams, Ancestral, SDEDPMSolver, UniPC
from samplers.multistep import Multistep
from scoresde import ExactScoreModel
from tests.analytic import SDES, gaussian, mixture
from tests.convergence import asymptotic_slopes, errors_on_a_gaussian, inner_grid, kinked, noise_for
from tests.samplers_under_test import TABLES, name

MULTISTEP = [s for s in TABLES if s.noise == "none" and isinstance(s, Multistep)]


def assert_ramped_order(sampler, sde_name, device):
    model = ExactScoreModel(gaussian(device), SDES[sde_name])
    if kinked(sampler, model):
        return  # the path of a chain has kinks in t
    errors = errors_on_a_gaussian(sampler, model.sde, "log_snr", exact_history=False, device=device)
    order = min(sampler.order, 2 + sampler.scheme(model).corrector)
    assert min(asymptotic_slopes(errors)) > order - 0.1, f"{sde_name}: {errors}"


@pytest.mark.parametrize("sampler", MULTISTEP, ids=name)
def test_a_start_with_fewer_values_costs_order(sampler, device):
    """The first step knows one value. Without a corrector its error is h^2, with one h^3, whatever comes after.

    Under one SDE for each sampler, by turns.
    """
    assert_ramped_order(sampler, list(SDES)[MULTISTEP.index(sampler) % len(SDES)], device)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", MULTISTEP, ids=name)
def test_a_start_with_fewer_values_costs_order_under_every_sde(sampler, device):
    for sde_name in SDES:
        assert_ramped_order(sampler, sde_name, device)


WITH_ONE_VALUE = {
    DEIS(1): DDIM(),
    Adams(1, False, "noise"): DDIM(),
    Adams(1, False, "denoised"): DDIM(),
    SDEDPMSolver(1): Ancestral(),
}


def test_with_one_value_a_method_is_ddim_or_ancestral_sampling(sde, device):
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 6, "log_snr")
    x_T = sde.sigma(grid[0]).item() * noise.normal(0, (2,), torch.float64)
    for sampler, method in WITH_ONE_VALUE.items():
        if kinked(sampler, model):
            continue  # the integral over t crosses the kinks of the chain's path
        ours, theirs = (each.run(model, x_T, grid, noise) for each in (sampler, method))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, at=sampler: f"{at}: {text}")


def test_the_exact_weights_of_three_values_leave_unipc_one_variant(sde):
    model = ExactScoreModel(mixture(), sde)
    grid = UniPC(3).default_grid(model, 8)
    first, second = UniPC(3, "B1").table(model, grid), UniPC(3, "B2").table(model, grid)
    assert torch.equal(first.b[4:], second.b[4:])  # the start with two values, and its correction, take half weights
    assert not torch.equal(first.b[:4], second.b[:4])

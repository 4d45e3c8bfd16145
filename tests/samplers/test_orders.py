"""Every sampler converges with the order that it declares, under every SDE."""

from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import mixture_samplers
from samplers import DDIM, EulerMaruyama, Heun, ProbabilityFlow, SDEDPMSolver, SDEDPMSolverSingle, sample
from scoresde import VPSDE, ExactScoreModel
from sde_configs.build import SAMPLERS as SAMPLER_NAMES
from tests.analytic import SDES, gaussian, mixture
from tests.convergence import (
    asymptotic_slopes,
    errors_on_a_gaussian,
    inner_grid,
    kinked,
    noise_for,
    slopes,
    smooth,
    variance_errors,
)
from tests.samplers_under_test import MOVING, TABLES, name, steps_of

DETERMINISTIC = [s for s in TABLES if s.noise == "none"]
STOCHASTIC = [s for s in TABLES if s.noise != "none" and s.order > 0]
SPACINGS = ["time", "sqrt", "log_snr"]


def assert_strong_order(sampler, sde_name, spacing, device):
    sde = SDES[sde_name]
    if kinked(sampler, ExactScoreModel(gaussian(device), sde)):
        return  # the path of a chain has kinks in t
    errors = errors_on_a_gaussian(sampler, sde, spacing, exact_history=True, device=device)
    assert min(asymptotic_slopes(errors)) > sampler.order - 0.1, f"{sde_name}, {spacing}: {errors}"


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name)
def test_strong_order_against_the_exact_flow_of_a_gaussian(sampler, device):
    """On one spacing for each SDE; each sampler sees every spacing, and so does each SDE."""
    for k, sde_name in enumerate(SDES, start=DETERMINISTIC.index(sampler)):
        assert_strong_order(sampler, sde_name, SPACINGS[k % 3], device)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=name)
def test_strong_order_on_every_spacing(sampler, device):
    for sde_name, spacing in itertools.product(SDES, SPACINGS):
        assert_strong_order(sampler, sde_name, spacing, device)


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), EulerMaruyama(eta=0.0)], ids=name)
def test_strong_order_on_a_mixture_against_a_converged_solver(sampler, device):
    sde, noise = VPSDE(), noise_for(64, device)
    model = ExactScoreModel(mixture(device), sde)
    x_T = 3.0 * noise.normal(0, (2,), torch.float64)
    reference = ProbabilityFlow(rtol=1e-11, atol=1e-11).run(model, x_T, inner_grid(sde, 1, "time"), noise)
    errors = []
    for num_steps in (256, 512, 1024):
        result = sampler.run(model, x_T, inner_grid(sde, num_steps, "log_snr"), noise)
        errors.append((result - reference).square().mean().sqrt().item())
    assert min(slopes(errors)) > sampler.order - 0.1, errors


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_weak_order_without_monte_carlo(sampler, device):
    """On even steps in time or in log-SNR by turns; each SDE sees both."""
    for k, sde_name in enumerate(SDES, start=STOCHASTIC.index(sampler)):
        assert_weak_order(sampler, sde_name, ["time", "log_snr"][k % 2], device)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_weak_order_on_both_spacings(sampler, device):
    for sde_name, spacing in itertools.product(SDES, ["time", "log_snr"]):
        assert_weak_order(sampler, sde_name, spacing, device)


def assert_weak_order(sampler, sde_name, spacing, device):
    for mean, variance in ((0.7, 0.09), (-0.4, 2.5)):
        found = variance_errors(sampler, smooth(SDES[sde_name]), spacing, mean, variance, device)
        mean_errors, errors = found
        case = f"N({mean}, {variance}), {sde_name}, {spacing}: {found}"
        assert max(mean_errors) < 1e-10 or min(slopes(mean_errors)) > sampler.order - 0.1, case
        assert min(slopes(errors)) > sampler.order - 0.1, case


def test_path_noise_follows_one_motion(device):
    """With path noise a sample converges as its grid is refined: strong order 1. With fresh noise it goes nowhere."""
    sde, noise = VPSDE(), noise_for(200, device)
    model = ExactScoreModel(gaussian(device), sde)
    x_T = 3.0 * noise.normal(0, (3,), torch.float64)
    results = {}
    for sampler in (SDEDPMSolverSingle(), SDEDPMSolver(2)):
        runs = [sampler.run(model, x_T, inner_grid(sde, n, "log_snr"), noise) for n in (32, 64, 128, 256)]
        results[sampler.noise] = [(b - a).square().mean().sqrt().item() for a, b in itertools.pairwise(runs)]
    assert min(slopes(results["path"])) > 0.8, results
    assert results["independent"][-1] > 20 * results["path"][-1]


@pytest.mark.parametrize("sampler", MOVING, ids=name)
def test_samples_of_a_gaussian_have_its_moments(sampler, device):
    target = gaussian(device)
    mean, rotation, variances = (
        part[0].cpu() for part in (target.mixture.means, target.mixture.rotations, target.mixture.variances)
    )
    for sde in (VPSDE(), SDES["edm"]):
        model = ExactScoreModel(target, sde)
        x = sample(model, sampler, 4000, num_steps=steps_of(sampler, 200), batch_size=4000).x.cpu()
        z = (x - mean) @ rotation.T / variances.sqrt()
        # 4000 samples: means within 5/sqrt(4000) = 0.08, deviations within 5/sqrt(8000) = 0.056, and the steps' bias
        assert z.mean(0).abs().max() < 0.12, sde
        assert (z.std(0) - 1).abs().max() < 0.12, sde


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("sde", [n for n in SDES if n != "own"])
def test_mode_weights_and_widths_of_the_nine_modes(sde, sampler):
    result = mixture_samplers.measure(sde, sampler)
    assert result.weight_error <= (0.05 if sampler == "langevin" else 0.03)
    assert result.narrowest >= 0.9
    assert result.widest <= 1.1

"""Calibration: the derivatives, what it gains, and what it does where nothing can be gained."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import SDES

from samplers import FittedSampler, pilot, sample
from samplers.fitted.calibrate import HELD_OUT, ITERATIONS, _Descent, _level, _Solver, calibrate
from samplers.fitted.reference import Coupling, noise_of, reference_coupling, trimmed_error
from samplers.integrands import level_at
from scoresde import (
    EDMSDE,
    CallableScoreModel,
    DenoisedParametrization,
    ExactScoreModel,
    Gaussian,
    GaussianPathSDE,
    Noise,
)
from scoresde.data import nine_modes
from scoresde.errors import UsageError


@pytest.fixture(scope="module")
def model():
    return ExactScoreModel(nine_modes().to(dtype=torch.float64), EDMSDE())


@pytest.fixture(scope="module")
def piloted(model):
    return pilot(model)


@pytest.fixture(scope="module")
def truth(model, piloted):
    return reference_coupling(model, piloted.fits[8].sd, num_samples=1000, seed=1)


def test_the_truth_is_the_converged_flow(model, piloted, truth):
    fine = reference_coupling(model, piloted.fits[8].sd, num_samples=1000, seed=1, num_evaluations=800, batch_size=500)
    assert torch.equal(fine.start, truth.start)
    assert trimmed_error(truth.end, fine.end) < 3e-4


def test_a_table_goes_through_its_parameters(model, piloted):
    """The differentiable loop, the table of the parameters, and the table that was started from agree."""
    for num_steps in (1, 4, 9):
        fit = piloted.fits[num_steps] if num_steps > 1 else _one_step(model, piloted)
        solver = _Solver.of(fit, model)
        theta = solver.theta_of(fit)
        again = solver.fit(theta)
        torch.testing.assert_close(again.noise_level, fit.noise_level)
        x_T = noise_of(model, 6, seed=0)
        ends = [end_of(model, FittedSampler({num_steps: each}), num_steps, x_T) for each in (fit, again)]
        torch.testing.assert_close(ends[0], ends[1])
        torch.testing.assert_close(solver.end(theta.repeat(6, 1), x_T, None), ends[0])


def end_of(model, sampler, num_steps, x_T, cond=None):
    """From noise at t_max; a table that starts below takes the same noise there."""
    grid = sampler.default_grid(model.sde, num_steps)
    x_T = Coupling(x_T, x_T, None).start_of(sampler.table(model.sde, grid), model.sde)
    return sampler.run(model, x_T, grid, Noise(0, torch.arange(0)), cond)


def _one_step(model, piloted):
    solver = _Solver.of(piloted.fits[4], model)
    theta = torch.tensor([1.0, math.log(20.0)], dtype=torch.float64)
    return _Solver(model, solver.integrand, 1, solver.largest).fit(theta)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_derivatives_are_those_of_the_table(sde):
    """Of weights and noise levels, against central differences, under every SDE."""
    model = ExactScoreModel(nine_modes().to(dtype=torch.float64), sde)
    fit = pilot(model).fits[5]
    solver = _Solver.of(fit, model)
    theta = solver.theta_of(fit)
    theta[-5] -= 0.1  # within the SDE's range, on both sides
    x_T = model.sde.prior_std() * torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = theta.repeat(3, 1).requires_grad_()
    v = torch.tensor([[1.0, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    (rows,) = torch.autograd.grad(solver.end(own, x_T, None), own, v)
    for i in range(len(theta)):
        nudge = torch.zeros_like(theta)
        nudge[i] = 1e-5
        ends = [(solver.end((theta + s * nudge).repeat(3, 1), x_T, None) * v).sum(1) for s in (1, -1)]
        torch.testing.assert_close(rows[:, i], (ends[0] - ends[1]) / 2e-5, rtol=2e-3, atol=2e-4)


def test_levels_have_a_derivative_where_the_inverse_was_found_by_bisection():
    sde = GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    noise_level = torch.tensor([3.0, 0.1], dtype=torch.float64, requires_grad=True)
    level = _level(sde, noise_level)
    torch.testing.assert_close(level.noise_level, noise_level)
    (slope,) = torch.autograd.grad(level.t.sum(), noise_level)
    near = [level_at(sde, noise_level.detach() * (1 + s)).t for s in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (near[0] - near[1]) / (2e-5 * noise_level.detach()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("num_steps", [5, 8])
def test_it_gains_on_noises_that_it_never_saw(model, piloted, truth, num_steps):
    told = []
    calibrated, before, after = calibrate(model, piloted, num_steps, truth, tell=lambda i, error: told.append(i))
    assert told == list(range(1, ITERATIONS + 1))
    assert after < 0.7 * before
    other = reference_coupling(model, piloted.fits[8].sd, num_samples=500, seed=9)
    errors = [trimmed_error(end_of(model, each, num_steps, other.start), other.end) for each in (piloted, calibrated)]
    assert errors[1] < 0.7 * errors[0]
    assert calibrated.fits[9] is piloted.fits[9]
    again = FittedSampler.from_json(calibrated.to_json())
    torch.testing.assert_close(again.fits[num_steps].weights, calibrated.fits[num_steps].weights, rtol=0, atol=0)


def test_it_is_deterministic(model, piloted, truth):
    a, b = (calibrate(model, piloted, 4, truth, seed=3) for _ in range(2))
    assert a.after == b.after
    assert torch.equal(a.sampler.fits[4].weights, b.sampler.fits[4].weights)


def test_where_nothing_can_be_gained_the_start_is_kept(model, piloted, truth):
    """The truth is what the table itself does."""
    held_out, solver = len(truth.start) // HELD_OUT, _Solver.of(piloted.fits[6], model)
    same = FittedSampler({6: solver.fit(solver.theta_of(piloted.fits[6]))})  # but for rounding
    ends = [end_of(model, same, 6, part) for part in (truth.start[:held_out], truth.start[held_out:])]
    own = Coupling(truth.start, torch.cat(ends), None)
    sampler, before, after = calibrate(model, piloted, 6, own)
    assert before == after == 0
    assert sampler.fits == piloted.fits


def test_a_flow_that_stands_still_is_calibrated():
    """Of a Gaussian h is zero for the right scale: no weight has any effect."""
    model = ExactScoreModel(Gaussian(torch.zeros(3), torch.eye(3)).to(dtype=torch.float64), EDMSDE())
    sampler = pilot(model)
    after = calibrate(model, sampler, 5, reference_coupling(model, 1.0, num_samples=64)).after
    assert math.isfinite(after)


def test_a_calibrated_table_is_drawn_from_where_it_starts(model, piloted, truth):
    """`sample` draws the prior at the grid's start: the same samples as from the noise at t_max, scaled."""
    calibrated = calibrate(model, piloted, 5, truth).sampler
    assert calibrated.fits[5].noise_level[0] < 0.9 * piloted.fits[5].noise_level[0]
    noise = noise_of(model, 7, seed=3)
    torch.testing.assert_close(sample(model, calibrated, 7, num_steps=5, seed=3).x, end_of(model, calibrated, 5, noise))


def test_too_few_noises_and_other_numbers_are_named(model, piloted, truth):
    with pytest.raises(UsageError, match="num_samples=63: calibration needs at least 64"):
        calibrate(model, piloted, 8, truth.part(slice(63)))
    with pytest.raises(UsageError, match="num_steps=51: need one of 4 to 50"):
        calibrate(model, piloted, 51, truth)


def test_images_and_labels(device):
    """A model of images with conditions, in float32."""

    def denoiser(x, t, cond):
        return torch.tanh(x / (1 + t.view(-1, 1, 1, 1) ** 2) + 0.1 * cond.view(-1, 1, 1, 1))

    shape = (1, 4, 4)
    model = CallableScoreModel(denoiser, DenoisedParametrization(), EDMSDE(), shape, device=device)
    cond = (torch.arange(96) % 3).float()
    sampler = pilot(model, cond[:32])
    truth = reference_coupling(model, sampler.fits[5].sd, cond, 96)
    calibrated, before, after = calibrate(model, sampler, 5, truth, batch_size=40)
    assert after < 0.5 * before
    x, x_before = (end_of(model, each, 5, truth.start, truth.cond) for each in (calibrated, sampler))
    assert trimmed_error(x, truth.end) < trimmed_error(x_before, truth.end)


def test_it_goes_on_from_a_start_whose_last_level_is_the_least(model, piloted, truth):
    """From where it cannot fall any further."""
    fit, least = piloted.fits[5], model.sde.noise_level(torch.tensor(model.sde.t_min, dtype=torch.float64)).item()
    level = torch.cat([fit.noise_level[:-1], fit.noise_level.new_tensor([least])])
    descent = _Descent(model, dataclasses.replace(fit, noise_level=level), truth)
    before, generator = descent.error, torch.Generator().manual_seed(0)
    for _ in range(4):
        descent.iterate(64, generator)
    assert descent.error < 0.5 * before


def test_a_bad_table_is_not_what_it_goes_on_from(model, piloted, truth):
    """The starts on even nodes are better, and one of them is kept."""
    fit = piloted.fits[5]
    bad = dataclasses.replace(fit, noise_level=torch.linspace(80, 40, 5, dtype=torch.float64))
    errors = [calibrate(model, FittedSampler({5: start}), 5, truth).after for start in (fit, bad)]
    assert errors[1] < 2 * errors[0]


def test_trimmed_error_leaves_out_the_worst_three_of_a_hundred():
    x = torch.ones(100, 2)
    x[:3] = 1e3
    assert trimmed_error(x, torch.zeros(100, 2)) == pytest.approx(1)


def test_a_step_stops_at_the_end_of_the_range_and_is_solved_for_the_rest(model, piloted):
    """Against the reduced least-squares problem, with the last noise level at its bound."""
    fitted = piloted.fits[5]
    solver = _Solver.of(fitted, model)
    theta, generator = solver.theta_of(fitted), torch.Generator().manual_seed(0)
    rows = torch.randn(200, len(theta), dtype=torch.float64, generator=generator)
    least = math.log(model.sde.noise_level(torch.tensor(model.sde.t_min, dtype=torch.float64)))
    wanted = 1e-3 * torch.randn(len(theta), dtype=torch.float64, generator=generator)
    wanted[-1] = least - 1 - theta[-1]
    errors = -rows @ wanted
    there = solver.step(theta, rows.T @ rows, rows.T @ errors, 0.0)
    rest = torch.linalg.lstsq(rows[:, :-1], -errors - rows[:, -1] * (least - theta[-1])).solution
    torch.testing.assert_close(there[-1].item(), least)
    torch.testing.assert_close(there[:-1], theta[:-1] + rest)

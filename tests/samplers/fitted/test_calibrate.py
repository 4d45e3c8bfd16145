"""Calibration: the derivatives, what it gains, and what it does where nothing can be gained."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn

from samplers import FittedSampler, calibrate, fit_sampler, reference_coupling, sample
from samplers.fitted.calibrate import (
    ITERATIONS,
    VALIDATION_ONE_IN,
    _differentiable_level,
    _Problem,
    _Search,
    graphs_kept,
)
from samplers.fitted.least_squares import fit_weights
from samplers.fitted.nodes import power_nodes
from samplers.fitted.reference import Coupling, no_noise, prior_noise, reference_run, trimmed_error
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
from tests.analytic import SDES


def problem_of(table, model):
    return _Problem(model, table.integrand, len(table.noise_level), table.largest)


def end_of(model, sampler, num_steps, x_T, cond=None):
    """From noise at t_max; a table that starts below takes the same noise there."""
    grid = sampler.grid(model, num_steps)
    start = Coupling(x_T, x_T, None).start_of(sampler.table(model, grid), model.sde)
    return sampler.run(model, start, grid, no_noise(), cond)


def one_step(model, piloted):
    """A table of one step, from noise level 20."""
    whole = problem_of(piloted.tables[4], model)
    theta = torch.tensor([1.0, math.log(20.0)], dtype=torch.float64)
    return dataclasses.replace(whole, num_steps=1).fitted_of(theta)


def test_a_table_goes_through_its_parameters(model, piloted):
    """The differentiable loop, the table of the parameters, and the table that was started from agree."""
    for num_steps in (1, 4, 9):
        table = piloted.tables[num_steps] if num_steps > 1 else one_step(model, piloted)
        problem = problem_of(table, model)
        theta = problem.theta_of(table)
        again = problem.fitted_of(theta)
        torch.testing.assert_close(again.noise_level, table.noise_level)
        x_T = prior_noise(model, 6, seed=0)
        ends = [end_of(model, FittedSampler({num_steps: each}), num_steps, x_T) for each in (table, again)]
        torch.testing.assert_close(ends[0], ends[1])
        torch.testing.assert_close(problem.end(theta.repeat(6, 1), x_T, None), ends[0])


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_derivatives_are_those_of_the_table(sde):
    """Of weights and noise levels, against central differences, under every SDE."""
    model = ExactScoreModel(nine_modes().to(dtype=torch.float64), sde)
    reference = reference_run(model)
    table = fit_weights(reference, sde, power_nodes(reference, sde, 5, power=1.5, scale=1.0)).table
    problem = problem_of(table, model)
    theta = problem.theta_of(table)
    theta[-5] -= 0.1  # within the SDE's range, on both sides
    x_T = sde.prior_std() * torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = theta.repeat(3, 1).requires_grad_()
    v = torch.tensor([[1.0, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    (rows,) = torch.autograd.grad(problem.end(own, x_T, None), own, v)
    for i in range(len(theta)):
        nudge = torch.zeros_like(theta)
        nudge[i] = 1e-5
        ends = [(problem.end((theta + s * nudge).repeat(3, 1), x_T, None) * v).sum(1) for s in (1, -1)]
        torch.testing.assert_close(rows[:, i], (ends[0] - ends[1]) / 2e-5, rtol=2e-3, atol=2e-4)


def test_levels_have_a_derivative_where_the_inverse_was_found_by_bisection():
    sde = GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    noise_level = torch.tensor([3.0, 0.1], dtype=torch.float64, requires_grad=True)
    level = _differentiable_level(sde, noise_level)
    torch.testing.assert_close(level.noise_level, noise_level)
    (slope,) = torch.autograd.grad(level.t.sum(), noise_level)
    near = [sde.at_noise_level(noise_level.detach() * (1 + s)).t for s in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (near[0] - near[1]) / (2e-5 * noise_level.detach()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("num_steps", [5, 8])
def test_it_gains_on_noises_that_it_never_saw(model, piloted, coupling, num_steps):
    errors = []
    calibrated, before, after = calibrate(model, piloted, num_steps, coupling, on_iteration=errors.append)
    assert len(errors) == ITERATIONS
    assert errors == sorted(errors, reverse=True)
    assert after == errors[-1]
    assert after < 0.7 * before
    other = reference_coupling(model, piloted.tables[8].sigma_data, num_samples=500, seed=9)
    of_pilot, of_calibrated = (
        trimmed_error(end_of(model, each, num_steps, other.x_T), other.x_0) for each in (piloted, calibrated)
    )
    assert of_calibrated < 0.7 * of_pilot
    assert calibrated.tables[9] is piloted.tables[9]
    again = FittedSampler.from_json(calibrated.to_json())
    torch.testing.assert_close(again.tables[num_steps].weights, calibrated.tables[num_steps].weights, rtol=0, atol=0)


def test_it_is_deterministic(model, piloted, coupling):
    a, b = (calibrate(model, piloted, 4, coupling, seed=3) for _ in range(2))
    assert a.after == b.after
    assert torch.equal(a.sampler.tables[4].weights, b.sampler.tables[4].weights)


def test_it_is_the_same_for_every_batch_size(model, piloted, coupling):
    """Up to the rounding of sums."""
    a, b = (calibrate(model, piloted, 5, coupling, batch_size=size).after for size in (50, 200))
    assert a == pytest.approx(b, rel=1e-4)


def test_graphs_that_would_be_large_are_made_again(device):
    """The equations are the same, and the network holds one evaluation of a sample instead of all."""
    shape = (3, 32, 32)
    network = nn.Conv2d(3, 3, 1).to(device)
    model = CallableScoreModel(lambda x, t: network(x), DenoisedParametrization(), EDMSDE(), shape, device)
    assert [graphs_kept(model, n) for n in (3, 8)] == [3, 1]
    table = fit_sampler(ExactScoreModel(Gaussian(torch.zeros(2), torch.eye(2)), EDMSDE())).tables[8]
    again = problem_of(table, model)
    theta = again.theta_of(table)
    coupling = Coupling(80 * torch.randn(2, *shape, device=device), torch.zeros(2, *shape, device=device), None)
    chosen = torch.arange(2)
    found = []
    for kept in (1, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["samplers.fitted.calibrate"], "graphs_kept", lambda *_, kept=kept: kept)
            found.append(again.equations(theta, coupling, chosen, 1e-6, Noise(0, chosen), 1))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_where_nothing_can_be_gained_the_start_is_kept(model, piloted, coupling):
    """The coupling is what the table itself does."""
    validation = len(coupling.x_T) // VALIDATION_ONE_IN
    problem = problem_of(piloted.tables[6], model)
    same = FittedSampler({6: problem.fitted_of(problem.theta_of(piloted.tables[6]))})  # but for rounding
    ends = [end_of(model, same, 6, part) for part in (coupling.x_T[:validation], coupling.x_T[validation:])]
    own = Coupling(coupling.x_T, torch.cat(ends), None)
    sampler, before, after = calibrate(model, piloted, 6, own)
    assert before == after == 0
    assert sampler.tables == piloted.tables


def test_a_flow_that_stands_still_is_calibrated():
    """Of a Gaussian h is zero for the right scale: no weight has any effect."""
    model = ExactScoreModel(Gaussian(torch.zeros(3), torch.eye(3)).to(dtype=torch.float64), EDMSDE())
    sampler = fit_sampler(model)
    after = calibrate(model, sampler, 5, reference_coupling(model, 1.0, num_samples=64)).after
    assert math.isfinite(after)


def test_a_calibrated_table_is_drawn_from_where_it_starts(model, piloted, coupling):
    """`sample` draws the prior at the grid's start: the same samples as from the noise at t_max, scaled."""
    calibrated = calibrate(model, piloted, 5, coupling).sampler
    starts = [sampler.tables[5].noise_level[0].log() for sampler in (calibrated, piloted)]
    assert abs(starts[0] - starts[1]) > 0.1
    noise = prior_noise(model, 7, seed=3)
    torch.testing.assert_close(sample(model, calibrated, 7, num_steps=5, seed=3).x, end_of(model, calibrated, 5, noise))


def test_too_few_noises_and_other_numbers_are_named(model, piloted, coupling):
    with pytest.raises(UsageError, match="coupling: has 63 noises; calibration needs at least 64"):
        calibrate(model, piloted, 8, coupling.take(slice(63)))
    with pytest.raises(UsageError, match="num_steps=51: need one of 4 to 50"):
        calibrate(model, piloted, 51, coupling)


def test_images_and_labels(device):
    """A model of images with conditions, in float32."""

    def denoiser(x, t, cond):
        return torch.tanh(x / (1 + t.view(-1, 1, 1, 1) ** 2) + 0.1 * cond.view(-1, 1, 1, 1))

    shape = (1, 4, 4)
    model = CallableScoreModel(denoiser, DenoisedParametrization(), EDMSDE(), shape, device=device)
    cond = (torch.arange(96) % 3).float()
    sampler = fit_sampler(model, cond[:32])
    coupling = reference_coupling(model, sampler.tables[5].sigma_data, cond, 96)
    calibrated, before, after = calibrate(model, sampler, 5, coupling, batch_size=40)
    assert after < 0.5 * before
    x, x_before = (end_of(model, each, 5, coupling.x_T, coupling.cond) for each in (calibrated, sampler))
    assert trimmed_error(x, coupling.x_0) < trimmed_error(x_before, coupling.x_0)


def test_it_goes_on_from_a_start_whose_last_level_is_the_least(model, piloted, coupling):
    """From where it cannot fall any further."""
    table = piloted.tables[5]
    level = torch.cat([table.noise_level[:-1], model.sde.span().noise_level[1:]])
    search = _Search(model, dataclasses.replace(table, noise_level=level), coupling)
    before, generator = search.error, torch.Generator().manual_seed(0)
    for _ in range(4):
        search.iterate(64, generator)
    assert search.error < 0.5 * before


def test_a_bad_table_is_not_what_it_goes_on_from(model, piloted, coupling):
    """The starts on equal-error nodes are better, and one of them is kept."""
    table = piloted.tables[5]
    bad = dataclasses.replace(table, noise_level=torch.linspace(80, 40, 5, dtype=torch.float64))
    errors = [calibrate(model, FittedSampler({5: start}), 5, coupling).after for start in (table, bad)]
    assert errors[1] < 2 * errors[0]


def test_a_step_stops_at_the_end_of_the_range_and_is_solved_for_the_rest(model, piloted):
    """Against the reduced least-squares problem, with the last noise level at its bound."""
    table = piloted.tables[5]
    problem = problem_of(table, model)
    theta, generator = problem.theta_of(table), torch.Generator().manual_seed(0)
    rows = torch.randn(200, len(theta), dtype=torch.float64, generator=generator)
    least = math.log(model.sde.span().noise_level[1])
    wanted = 1e-3 * torch.randn(len(theta), dtype=torch.float64, generator=generator)
    wanted[-1] = least - 1 - theta[-1]
    errors = -rows @ wanted
    there = problem.step(theta, rows.T @ rows, rows.T @ errors, 0.0)
    rest = torch.linalg.lstsq(rows[:, :-1], -errors - rows[:, -1] * (least - theta[-1])).solution
    torch.testing.assert_close(there[-1].item(), least)
    torch.testing.assert_close(there[:-1], theta[:-1] + rest)

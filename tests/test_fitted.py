"""The trigonometric solver, and tables fitted to a model by a pilot run."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from analytic import mixture
from conftest import SDES

from samplers import Adams, FittedSampler, Trigonometric, phi_to_clean, pilot, sample
from samplers.fitted.least_squares import Form, carried, fit, refit
from samplers.fitted.nodes import even_nodes, power_nodes, score
from samplers.fitted.pilot import NUM_EVALUATIONS
from samplers.fitted.reference import pilot_run, trimmed_error
from samplers.integrands import level_at
from samplers.table import Loop
from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisedParametrization,
    ExactScoreModel,
    Gaussian,
    GaussianMixture,
    Noise,
    UsageError,
)
from scoresde.data import nine_modes


def start_of(model, grid, num_samples, seed=9):
    x = Noise(seed, torch.arange(num_samples)).normal(0, model.shape, torch.float64)
    return x.to(model.like().device) * model.sde.sigma(grid[0]).item()


# --- the trigonometric solver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_values", [1, 2, 3, 4])
def test_between_noisy_levels_it_is_adams(sde, num_values):
    """So its order is theirs, which is measured there."""
    grid = sde.time(-2 * torch.linspace(math.log(3), math.log(0.1), 9, dtype=torch.float64))
    ours = Trigonometric(num_values, 0.7).table(sde, grid)
    adams = Adams(num_values, True, sd=0.7).table(sde, grid)
    for part in "abcpq":
        assert torch.equal(getattr(ours, part), getattr(adams, part))


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_gaussian_of_its_scale_is_carried_to_clean_data_exactly(sde, num_steps, device):
    """F is zero there: y does not move, and x_0 = sd x_T / sqrt(sd^2 alpha^2 + sigma^2), up to the mean."""
    target = Gaussian(torch.zeros(3, dtype=torch.float64), 0.49 * torch.eye(3, dtype=torch.float64)).to(device)
    model, sampler = ExactScoreModel(target, sde), Trigonometric(2, 0.7)
    grid = phi_to_clean(sde, num_steps, sd=0.7)
    x_T, level = start_of(model, grid, 5), sde.level(grid[0])
    x = sampler.run(model, x_T, grid, Noise(0, torch.arange(5)))
    expected = 0.7 * x_T / math.sqrt(0.49 * level.alpha.item() ** 2 + level.sigma.item() ** 2)
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_values", [1, 2])
def test_its_order_holds_down_to_clean_data(num_values, device):
    """No truncation is left: the end is that of the exact flow at noise level 0."""
    target = Gaussian(*(torch.tensor(v, dtype=torch.float64) for v in ([0.3, -1.0], [[0.5, 0.1], [0.1, 0.2]])))
    model, errors = ExactScoreModel(target.to(device), EDMSDE(t_min=1e-6)), []
    for num_steps in (40, 80, 160):
        grid = phi_to_clean(model.sde, num_steps, power=2.0)
        x_T = start_of(model, grid, 8)
        x = Trigonometric(num_values, 0.5).run(model, x_T, grid, Noise(0, torch.arange(8)))
        level = model.sde.level(grid[0]).like(x)
        clean = target.probability_flow(x_T, (level.alpha, level.sigma), (torch.ones_like(level.t), 0 * level.t))
        errors.append((x - clean).square().mean().sqrt().item())
    assert math.log2(errors[-2] / errors[-1]) > num_values + 0.9


def test_its_nodes(sde):
    grid = phi_to_clean(sde, 10, power=1.0, sd=2.0)
    phi = torch.atan(sde.noise_level(grid[:-1]) / 2)
    torch.testing.assert_close(phi, phi[0] * (1 - torch.arange(10, dtype=phi.dtype) / 10), rtol=1e-6, atol=1e-8)
    assert grid[-1] == 0
    assert phi_to_clean(sde, 1000, power=3.0)[-2] >= sde.t_min * (1 - 1e-9)


# --- fitted tables ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return ExactScoreModel(nine_modes().to(dtype=torch.float64), EDMSDE())


@pytest.fixture(scope="module")
def piloted(model):
    told = []
    sampler = pilot(model, tell=told.append)
    assert told == list(range(1, NUM_EVALUATIONS + 1))
    return sampler


def typical(model, sampler, num_steps, grid=None):
    """Median distance to the end of the converged flow, from noise that no pilot saw."""
    grid = sampler.default_grid(model.sde, num_steps) if grid is None else grid
    fine = phi_to_clean(model.sde, 800, 2.0, 0.5)
    both = ((sampler, grid), (Trigonometric(3), fine))
    ends = [s.run(model, start_of(model, g, 200), g, Noise(0, torch.arange(200))) for s, g in both]
    return (ends[0] - ends[1]).square().mean(1).sqrt().median().item()


def test_a_pilot_costs_what_is_promised():
    assert NUM_EVALUATIONS <= 400


@pytest.mark.parametrize("num_steps", [5, 8, 12, 20, 40])
def test_fitted_tables_are_better_than_fixed_ones(model, piloted, num_steps):
    fixed = phi_to_clean(model.sde, num_steps, 1.5, 0.5)
    assert typical(model, piloted, num_steps) < 0.8 * typical(model, Trigonometric(2, 0.5), num_steps, fixed)


def test_without_a_fit_it_is_the_trigonometric_solver(model):
    run = pilot_run(model)
    r = power_nodes(run, model.sde, 9, 1.5, 1.0)
    grid = torch.cat([level_at(model.sde, r).t, torch.zeros(1, dtype=torch.float64)])
    fitted = fit(run, model.sde, r, Form(3, 3, 1e12)).fit.table(model.sde)
    expected = Trigonometric(3, run.scale).table(model.sde, grid)
    for part in "acpq":
        torch.testing.assert_close(getattr(fitted, part), getattr(expected, part))
    torch.testing.assert_close(fitted.b[:, :4], expected.b)


def test_a_fit_promises_less_error_on_the_pilots_own_path(model):
    run = pilot_run(model)
    for num_steps in (5, 10):
        r = power_nodes(run, model.sde, num_steps, 1.5, 1.0)
        plain, fitted = (fit(run, model.sde, r, Form(3, 2, ridge)) for ridge in (1e12, 1e-4))
        assert score(fitted.errors) < score(plain.errors)
        assert fitted.own.sum() < plain.own.sum()


@pytest.mark.parametrize("num_steps", [6, 20, 50])
def test_even_nodes_share_the_errors_evenly(model, num_steps):
    """But for the sixteenth of them that stays where it was."""
    run, sde = pilot_run(model), model.sde
    even, early = (even_nodes(run, sde, num_steps, early) for early in (False, True))
    power = power_nodes(run, sde, num_steps, 1.5, 1.0)
    for r in (even, early):
        assert r.shape == (num_steps,)
        assert r[0] == pytest.approx(power[0].item())
        assert (r.diff() < 0).all()
        assert r[-1] >= sde.noise_level(torch.tensor(sde.t_min, dtype=torch.float64)) * (1 - 1e-9)
    assert (early[1:] > even[1:]).double().mean() > 0.8  # more of them are at large noise
    uneven = [(own.max() / own.mean()).item() for own in (fit(run, sde, r).own for r in (even, power))]
    assert uneven[0] < 0.6 * uneven[1]


def test_even_nodes_end_nearer_to_the_converged_flow(model):
    run, sde = pilot_run(model), model.sde
    nodes = (even_nodes(run, sde, 20), power_nodes(run, sde, 20, 1.5, 1.0))
    even, power = (trimmed_error(run_of(model, run, fit(run, sde, r).fit), run.truth.end) for r in nodes)
    assert even < 0.5 * power


def test_even_nodes_stay_above_the_least_noise():
    """Where t_min is larger than the details of the data, all steps would like to be below it."""
    model = ExactScoreModel(nine_modes().to(dtype=torch.float64), EDMSDE(t_min=0.2))
    for early in (False, True):
        r = even_nodes(pilot_run(model), model.sde, 20, early)
        assert r[-1].item() == pytest.approx(0.2, rel=1e-6)
        assert (r.diff() < 0).all()


def run_of(model, run, fitted):
    table = fitted.table(model.sde)
    start = run.truth.start_of(table, model.sde)
    return Loop(table, model, start)(start, Noise(0, torch.arange(0)), run.truth.cond)


@pytest.mark.parametrize("num_steps", [5, 8, 15])
def test_a_refit_ends_nearer_to_the_converged_flow(model, num_steps):
    run, told = pilot_run(model), []
    first = fit(run, model.sde, power_nodes(run, model.sde, num_steps, 1.5, 1.0)).fit
    second, x = refit(run, model, first, lambda: told.append(1))
    assert len(told) == num_steps
    torch.testing.assert_close(run_of(model, run, second), x, rtol=1e-6, atol=1e-8)  # it ran what it returns
    before, after = (trimmed_error(run_of(model, run, fitted), run.truth.end) for fitted in (first, second))
    assert after < 0.9 * before


def test_a_refit_leaves_a_table_where_its_ridge_is_large(model, monkeypatch):
    monkeypatch.setattr("samplers.fitted.least_squares.REFIT_RIDGE", 1e12)
    run = pilot_run(model)
    first = fit(run, model.sde, power_nodes(run, model.sde, 8, 1.5, 1.0)).fit
    second, x = refit(run, model, first, lambda: None)
    torch.testing.assert_close(second.weights[:, : first.weights.shape[1]], first.weights, rtol=0, atol=1e-8)
    torch.testing.assert_close(run_of(model, run, first), x, rtol=1e-6, atol=1e-6)


def test_a_sample_in_another_basin_hardly_bends_a_refit(model):
    """The end of one of 32 is moved as far as another mode; the others end as near as before."""
    run = pilot_run(model)
    denoised = run.denoised.clone()
    denoised[-1, :2] += 1.0
    moved = dataclasses.replace(run, denoised=denoised)
    first = fit(run, model.sde, power_nodes(run, model.sde, 8, 1.5, 1.0)).fit
    ends = [refit(which, model, first, lambda: None)[1] for which in (run, moved)]
    assert trimmed_error(ends[1][1:], run.truth.end[1:]) < 1.5 * trimmed_error(ends[0][1:], run.truth.end[1:])


def test_what_a_refit_taught_is_carried_to_the_next_numbers_of_steps(model):
    run = pilot_run(model)
    fits = {n: fit(run, model.sde, power_nodes(run, model.sde, n, 1.5, 1.0)).fit for n in (4, 10, 11)}
    refitted, _ = refit(run, model, fits[10], lambda: None)
    torch.testing.assert_close(carried(fits[10], refitted, fits[10]).weights, refitted.weights)
    for n in (4, 11):
        width = fits[n].weights.shape[1]
        torch.testing.assert_close(carried(fits[10], fits[10], fits[n]).weights[:, :width], fits[n].weights)
        table = carried(fits[10], refitted, fits[n])
        assert table.weights.shape[1] <= n
        assert not table.weights.triu(1).any()  # no step knows what comes later


def test_the_pilots_path_is_the_converged_flow(model):
    run = pilot_run(model)
    fine = phi_to_clean(model.sde, 800, 2.0, 0.5)
    end = Trigonometric(3).run(model, run.truth.start, fine, Noise(0, torch.arange(32)))
    assert (run.truth.end - end).square().mean(1).sqrt().median() < 3e-4
    u, denoised = run.at(torch.tensor([3.0, 0.2], dtype=torch.float64))
    assert u.shape == denoised.shape == (2, 64)
    torch.testing.assert_close(model.denoise(u[1].view(32, 2), 0.2).flatten(), denoised[1], rtol=1e-3, atol=1e-3)


def test_the_spread_is_between_the_entries_deviation_and_that_of_the_first_direction():
    """Two points (1, ..., 1) and (-1, ..., -1) of 64 entries, and noise of 0.1."""
    corners = torch.stack([torch.ones(64), -torch.ones(64)])
    target = GaussianMixture(torch.tensor([0.5, 0.5]), corners, (0.01 * torch.eye(64)).expand(2, 64, 64))
    run = pilot_run(ExactScoreModel(target.to(dtype=torch.float64), EDMSDE()), num_samples=200)
    assert run.scale == pytest.approx(1, abs=0.02)
    assert run.spread == pytest.approx(math.sqrt(8), rel=0.02)


def test_tables_go_through_json(model, piloted):
    again = FittedSampler.from_json(json.loads(json.dumps(piloted.to_json())))
    for n in (4, 8, 50):
        assert torch.equal(sample(model, piloted, 3, num_steps=n).x, sample(model, again, 3, num_steps=n).x)
        assert sample(model, again, 3, num_steps=n).nfe == n


@pytest.mark.parametrize(
    "damage",
    [
        None,
        [],
        {},
        {"8": {}},
        {"8": {"largest": 3.0, "sd": 1.0, "noise_level": [2.0, 1.0], "weights": [[1.0]] * 2}},  # not 8
        {"2": {"largest": 3.0, "sd": 1.0, "noise_level": [1.0, 2.0], "weights": [[1.0]] * 2}},  # rising
        {"2": {"largest": 1.0, "sd": 1.0, "noise_level": [2.0, 1.0], "weights": [[1.0]] * 2}},
        {"2": {"largest": 3.0, "sd": 0.0, "noise_level": [2.0, 1.0], "weights": [[1.0]] * 2}},
        {"2": {"largest": 3.0, "sd": 1.0, "noise_level": [2.0, 1.0], "weights": [[1.0]] * 3}},
        {"2": {"largest": 3.0, "sd": 1.0, "noise_level": [2.0, 1.0], "weights": [["a"]] * 2}},
    ],
)
def test_damaged_tables_are_no_tables(damage):
    with pytest.raises(ValueError, match="no fitted tables"):
        FittedSampler.from_json(damage)


def test_other_steps_and_grids_are_named(model, piloted):
    for num_steps in (3, 51):
        with pytest.raises(UsageError, match=f"num_steps={num_steps}: fitted are 4 to 50"):
            sample(model, piloted, 2, num_steps=num_steps)
    with pytest.raises(UsageError, match="grid: fitted tables have their own"):
        sample(model, piloted, 2, grid=phi_to_clean(model.sde, 8, 1.7))


def test_tables_of_another_sde_are_named(piloted):
    other = ExactScoreModel(nine_modes().to(dtype=torch.float64), VPSDE())
    with pytest.raises(UsageError, match=r"fitted under another SDE, with noise levels from 80 to .* has 152"):
        sample(other, piloted, 2, num_steps=8)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SDES["subvp"], SDES["flow"]], ids=["vp", "ve", "subvp", "flow"])
def test_every_path_has_its_pilot(sde, device):
    model = ExactScoreModel(mixture(device).to(dtype=torch.float32), sde)
    sampler = pilot(model)
    x = sample(model, sampler, 500, num_steps=15).x
    truth = model.target.sample(5000, torch.Generator(device).manual_seed(0))
    torch.testing.assert_close(x.std(0), truth.std(0), rtol=0.1, atol=0.05)


def test_a_flow_that_stands_still_is_fitted(device):
    """A Gaussian of the scale that the pilot finds: h is zero, and least squares have nothing to say."""
    model = ExactScoreModel(Gaussian(torch.zeros(40), torch.eye(40)).to(device, torch.float64), VPSDE())
    assert sample(model, pilot(model), 4, num_steps=6).x.isfinite().all()


def test_a_model_without_samples_is_named():
    broken = CallableScoreModel(lambda x, t: x * math.nan, DenoisedParametrization(), VPSDE(), (2,))
    with pytest.raises(UsageError, match="has it been trained"):
        pilot(broken)

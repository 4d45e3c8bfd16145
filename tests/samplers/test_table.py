"""Tables: where their rows arrive, how they are put together, and what a projection sees of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from samplers import (
    AnnealedLangevin,
    DPMSolver,
    Heun,
    ProbabilityFlow,
    Table,
    UniPC,
    concatenate,
    denoiser_table,
    interleave,
    prepare,
    sample,
    uniform_log_snr,
)
from samplers.table import Loop
from scoresde import VPSDE, ExactScoreModel, Gaussian, UsageError
from scoresde.sde import Level
from tests.analytic import SDES, gaussian, mixture
from tests.convergence import Flow, inner_grid, noise_for, slopes, smooth
from tests.samplers_under_test import MOVING, SAMPLERS, TABLES, name

PARTS = [field.name for field in dataclasses.fields(Level)]
PROJECTABLE = [s for s in SAMPLERS if not isinstance(s, ProbabilityFlow)]

# --- arrivals -------------------------------------------------------------------------------------------------------


def assert_arrivals(table, end, case):
    """Every row arrives where the next evaluates, and the last at the grid's end."""
    for part in PARTS:
        arrival, level = getattr(table.arrival, part), getattr(table.level, part)
        assert torch.equal(arrival[:-1], level[1:]), f"{case}: {part}"
        assert torch.equal(arrival[-1:], getattr(end, part)), f"{case}: {part}"


def test_a_row_arrives_where_the_next_evaluates_and_the_last_at_the_grids_end(sde):
    model, inner = ExactScoreModel(mixture(), sde), inner_grid(sde, 7, "log_snr")
    for sampler in TABLES:
        if not isinstance(sampler, AnnealedLangevin):
            to_clean = sampler.default_grid(model, 7)
            assert_arrivals(sampler.table(model, to_clean), Level.clean(), f"{sampler}, to clean data")
            assert_arrivals(sampler.table(model, inner), sde.level(inner[-1:]), f"{sampler}, to a noisy end")


def test_langevin_steps_arrive_where_they_evaluate(sde):
    sampler, model = AnnealedLangevin(corrector_steps=2), ExactScoreModel(mixture(), sde)
    grid = sampler.default_grid(model, 5)
    table = sampler.table(model, grid)
    assert torch.equal(table.arrival.t[:-1], table.level.t[:-1])
    assert torch.equal(table.level.t[:-1], grid[1:-1].repeat_interleave(2))
    assert table.arrival.t[-1] == 0


# --- putting tables together ----------------------------------------------------------------------------------------


def tables_of_two_widths(model, grid):
    level = model.sde.level(grid)
    return UniPC(2).steps(model, level[:-1], level[1:]), Heun().steps(model, level[:-1], level[1:])


def test_tables_one_after_the_other_do_what_they_do_apart():
    model = ExactScoreModel(mixture(), VPSDE())
    grid = inner_grid(model.sde, 8, "log_snr")
    first, second = tables_of_two_widths(model, grid[:5])[0], tables_of_two_widths(model, grid[4:])[1]
    table = concatenate([first, second])
    assert len(table) == len(first) + len(second)
    assert table.b.shape[1] == max(first.b.shape[1], second.b.shape[1])
    noise = noise_for(6)
    x_T = noise.normal(0, (2,), torch.float64)
    half_way = Loop(first, model, x_T)(x_T, noise)
    apart = Loop(second, model, x_T, first_row=len(first))(half_way, noise)
    assert torch.equal(Loop(table, model, x_T)(x_T, noise), apart)


def test_a_row_adds_the_noise_of_the_row_before(device):
    """Written out: the first row reads the noise of x_T, and noise that only the next row reads is drawn too."""
    model, noise = ExactScoreModel(mixture(device), VPSDE()), noise_for(16, device)
    level = model.sde.level(inner_grid(model.sde, 4, "log_snr"))
    a, b = torch.full((4,), 0.5, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)
    c = torch.tensor([0.2, 0.0, 0.0, 0.4], dtype=torch.float64)
    d = torch.tensor([0.7, 0.1, 0.6, 0.0], dtype=torch.float64)
    table = dataclasses.replace(denoiser_table(level[:-1], level[1:], a, b, c), d=d)
    z = [noise.normal(k, (2,), torch.float64) for k in range(5)]
    y = x_T = model.sde.prior_std() * z[0]
    for k in range(4):
        y = 0.5 * y + 0.3 * model.denoise(y, level.t[k].item()) + c[k] * z[k + 1] + d[k] * z[k]
    whole = Loop(table, model, x_T)(x_T, noise)
    torch.testing.assert_close(whole, y, rtol=1e-9, atol=1e-9)
    front = Loop(table.rows(slice(2)), model, x_T)(x_T, noise)
    assert torch.equal(Loop(table.rows(slice(2, None)), model, x_T, first_row=2)(front, noise), whole)


def test_interleaved_tables_take_turns():
    model = ExactScoreModel(mixture(), VPSDE())
    level = model.sde.level(inner_grid(model.sde, 4, "log_snr"))
    one_value = UniPC(2).steps(model, level[:-1], level[1:])
    ones = torch.ones(4, dtype=torch.float64)
    other = denoiser_table(level[1:], level[:-1], 2 * ones, 3 * ones, 4 * ones)
    table = interleave([one_value, other])
    width = one_value.b.shape[1]
    for k, (part, width_of_part) in enumerate(((one_value, width), (other, 1))):
        taken = table.rows(slice(k, None, 2))
        for column in "acdpq":
            assert torch.equal(getattr(taken, column), getattr(part, column)), column
        assert torch.equal(taken.b[:, :width_of_part], part.b)
        assert not taken.b[:, width_of_part:].any()
        for column in PARTS:
            assert torch.equal(getattr(taken.level, column), getattr(part.level, column)), column
            assert torch.equal(getattr(taken.arrival, column), getattr(part.arrival, column)), column


def test_some_rows_are_a_table(sde):
    model = ExactScoreModel(mixture(), sde)
    table = Heun().table(model, Heun().default_grid(model, 5))
    front, back = table.rows(slice(3)), table.rows(slice(3, None))
    again = concatenate([front, back])
    assert isinstance(front, Table)
    assert (len(front), len(back)) == (3, len(table) - 3)
    assert str(again) == str(table)
    assert all(torch.equal(getattr(again, column), getattr(table, column)) for column in "abcdpq")


# --- projections ----------------------------------------------------------------------------------------------------


class Watcher:
    """A callback and a projection that write down what they are called with; the projection moves the state."""

    def __init__(self, shift=0.0):
        self.shift = shift
        self.evaluated = []
        self.projected = []

    def callback(self, row, level, x_t, x0_hat):
        self.evaluated.append((row, level, x_t.clone()))

    def project(self, row, level, x):
        moved = x + self.shift
        self.projected.append((row, level, moved.clone()))
        return moved


def test_a_projection_is_called_after_each_row_where_the_row_arrives():
    model = ExactScoreModel(mixture(), VPSDE())
    for sampler in PROJECTABLE:
        watcher = Watcher(shift=0.1)
        prepared = prepare(model, sampler, num_steps=6)
        x, nfe = prepared.draw(noise_for(3), callback=watcher.callback, project=watcher.project)
        assert [row for row, _, _ in watcher.evaluated] == list(range(nfe)), sampler
        assert [row for row, _, _ in watcher.projected] == list(range(nfe)), sampler
        for (_, arrival, moved), (_, level, x_t) in zip(watcher.projected, watcher.evaluated[1:], strict=False):
            assert torch.equal(moved, x_t), sampler  # the next evaluation sees what the projection returned
            assert arrival == level or sampler not in MOVING, sampler
        _, last, moved = watcher.projected[-1]
        assert (last.t, last.alpha, last.sigma) == (0, 1, 0), sampler
        assert torch.equal(moved, x), sampler


def test_a_projection_that_changes_nothing_changes_no_bit(sde):
    model = ExactScoreModel(mixture(), sde)
    for sampler in PROJECTABLE:
        plain = sample(model, sampler, 5, num_steps=7).x
        assert torch.equal(plain, sample(model, sampler, 5, num_steps=7, project=lambda row, level, x: x).x), sampler


def test_a_sampler_that_chooses_its_steps_takes_no_projection():
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match=r"project: ProbabilityFlow .* has no rows to project after; take Heun\(\)"):
        sample(model, ProbabilityFlow(), 3, project=lambda row, level, x: x)


def projected_errors(sampler, sde):
    """Errors of all entries but the first, which is put on its exact flow where each row arrives."""
    model, errors = ExactScoreModel(gaussian(), sde), []
    for num_steps in (64, 128, 256):
        grid = inner_grid(sde, num_steps, "log_snr", first=2.0, last=0.4)
        level = sde.level(grid)
        flow = Flow(model.target, level[0])

        def project(row, at, x, flow=flow):
            return torch.cat([flow.at(at)[:, :1], x[:, 1:]], 1)

        x, _ = sampler.prepare(model, grid)(flow.x_T, noise_for(64), project=project)
        exact = flow.at(level[-1])
        assert torch.equal(x[:, 0], exact[:, 0])
        errors.append((x - exact)[:, 1:].square().mean().sqrt().item())
    return errors


@pytest.mark.parametrize("sampler", [UniPC(2), UniPC(3), DPMSolver(2), Heun()], ids=name)
def test_known_entries_on_the_flow_leave_the_order_as_it_is(sampler):
    """A wrong level, or a history that the projection spoils, would leave an error of first order.

    From a start with fewer values a method with a corrector has order 3 at most.
    """
    for sde_name, sde in SDES.items():
        errors = projected_errors(sampler, smooth(sde))
        assert min(slopes(errors)) > min(sampler.order, 3) - 0.1, f"{sde_name}: {errors}"


@pytest.mark.parametrize("sampler", [UniPC(3), DPMSolver(3), Heun()], ids=name)
def test_known_entries_leave_independent_ones_alone(sampler):
    """Entries of the data that know nothing of the projected one are sampled as without it."""
    target = Gaussian(torch.tensor([0.5, -1.0, 0.2]).double(), torch.tensor([0.3, 2.0, 0.01]).double())
    model = ExactScoreModel(target, VPSDE())
    grid = uniform_log_snr(model.sde, 12)
    noise = noise_for(10)
    known, eps = 1.5, noise.stream("known").normal(0, (), torch.float64)

    def project(row, level, x):
        return torch.cat([(level.alpha * known + level.sigma * eps)[:, None], x[:, 1:]], 1)

    plain = prepare(model, sampler, grid).draw(noise).x
    x = prepare(model, sampler, grid).draw(noise, project=project).x
    assert (x[:, 0] == known).all()
    torch.testing.assert_close(x[:, 1:], plain[:, 1:], rtol=0, atol=1e-13)

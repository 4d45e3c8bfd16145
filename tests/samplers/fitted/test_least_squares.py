"""Weights fitted to the reference, and again to a table's own run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from samplers.fitted.least_squares import FitSettings, fit_weights, refit, transfer_refit
from samplers.fitted.nodes import path_error, power_nodes
from samplers.fitted.reference import trimmed_error
from samplers.integrands import VelocityIntegrand, to_clean
from samplers.multistep import Scheme, multistep_table
from samplers.quadrature import Phi


def nodes(model, reference, num_steps):
    return power_nodes(reference, model.sde, num_steps, power=1.5, scale=1.0)


def fitted_table(model, reference, num_steps):
    return fit_weights(reference, model.sde, nodes(model, reference, num_steps)).table


def end_of(model, reference, table):
    """Where a table leads from the reference's noise."""
    return reference.coupling.run(table.table(model.sde), model)


def test_where_the_ridge_is_large_it_is_adams_with_its_corrector(model, reference):
    """The form starts from them: the trigonometric solver of the same scale on the same nodes."""
    r = nodes(model, reference, 9)
    fitted = fit_weights(reference, model.sde, r, FitSettings(3, 3, ridge=1e12)).table.table(model.sde)
    level = model.sde.at_noise_level(r)
    scheme = Scheme(VelocityIntegrand(reference.sigma_data), Phi(reference.sigma_data), 3, corrector=True)
    expected = multistep_table(scheme, level, to_clean(level))
    for part in "acdpq":
        torch.testing.assert_close(getattr(fitted, part), getattr(expected, part))
    torch.testing.assert_close(fitted.b[:, :4], expected.b)


def test_a_fit_promises_less_error_on_the_references_own_path(model, reference):
    for num_steps in (5, 10):
        r = nodes(model, reference, num_steps)
        plain, fitted = (fit_weights(reference, model.sde, r, FitSettings(3, 2, ridge)) for ridge in (1e12, 1e-4))
        assert path_error(fitted.errors) < path_error(plain.errors)
        assert fitted.step_errors.sum() < plain.step_errors.sum()


@pytest.mark.parametrize("num_steps", [5, 8, 15])
def test_a_refit_ends_nearer_to_the_converged_flow(model, reference, num_steps):
    told = []
    first = fitted_table(model, reference, num_steps)
    second, x = refit(reference, model, first, lambda: told.append(1))
    assert len(told) == num_steps
    torch.testing.assert_close(end_of(model, reference, second), x, rtol=1e-6, atol=1e-8)  # it ran what it returns
    before, after = (
        trimmed_error(end_of(model, reference, table), reference.coupling.x_0) for table in (first, second)
    )
    assert after < 0.9 * before


def test_a_refit_leaves_a_table_where_its_ridge_is_large(model, reference, monkeypatch):
    monkeypatch.setattr("samplers.fitted.least_squares.REFIT_RIDGE", 1e12)
    first = fitted_table(model, reference, 8)
    second, x = refit(reference, model, first, lambda: None)
    torch.testing.assert_close(second.weights[:, : first.weights.shape[1]], first.weights, rtol=0, atol=1e-8)
    torch.testing.assert_close(end_of(model, reference, first), x, rtol=1e-6, atol=1e-6)


def test_a_sample_in_another_basin_hardly_bends_a_refit(model, reference):
    """The end of one of 32 is moved as far as another mode; the others end as near as before."""
    denoised = reference.denoised.clone()
    denoised[-1, :2] += 1.0
    moved = dataclasses.replace(reference, denoised=denoised)
    first = fitted_table(model, reference, 8)
    ends = [refit(which, model, first, lambda: None)[1] for which in (reference, moved)]
    without, with_it = (trimmed_error(x[1:], reference.coupling.x_0[1:]) for x in ends)
    assert with_it < 1.5 * without


def test_the_correction_of_a_refit_is_transferred_to_other_numbers_of_steps(model, reference):
    tables = {n: fitted_table(model, reference, n) for n in (4, 10, 11)}
    refitted, _ = refit(reference, model, tables[10], lambda: None)
    same = transfer_refit(tables[10], refitted, tables[10])
    torch.testing.assert_close(same.weights, refitted.weights)
    for n in (4, 11):
        width = tables[n].weights.shape[1]
        nothing = transfer_refit(tables[10], tables[10], tables[n])
        torch.testing.assert_close(nothing.weights[:, :width], tables[n].weights)
        table = transfer_refit(tables[10], refitted, tables[n])
        assert table.weights.shape[1] <= n
        assert not table.weights.triu(1).any()  # no step knows what comes later

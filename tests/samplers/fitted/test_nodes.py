"""Nodes on which all steps add the same error."""

from __future__ import annotations

import pytest

from samplers.fitted.least_squares import fit_weights
from samplers.fitted.nodes import equal_error_nodes, power_nodes
from samplers.fitted.reference import reference_run, trimmed_error
from scoresde import EDMSDE, ExactScoreModel


def powers(model, reference, num_steps):
    return power_nodes(reference, model.sde, num_steps, power=1.5, scale=1.0)


@pytest.mark.parametrize("num_steps", [6, 20, 50])
def test_equal_error_nodes_share_the_errors_evenly(model, reference, num_steps):
    """But for the sixteenth of them that stays where it was."""
    sde = model.sde
    equal, early = (equal_error_nodes(reference, sde, num_steps, early) for early in (False, True))
    power = powers(model, reference, num_steps)
    least = sde.span().noise_level[1]
    for r in (equal, early):
        assert r.shape == (num_steps,)
        assert r[0] == pytest.approx(power[0].item())
        assert (r.diff() < 0).all()
        assert r[-1] >= least * (1 - 1e-9)
    assert (early[1:] > equal[1:]).double().mean() > 0.8  # more of them are at large noise
    errors = [fit_weights(reference, sde, r).step_errors for r in (equal, power)]
    of_equal, of_power = ((error.max() / error.mean()).item() for error in errors)
    assert of_equal < 0.6 * of_power


def test_equal_error_nodes_end_nearer_to_the_converged_flow(model, reference):
    errors = []
    for r in (equal_error_nodes(reference, model.sde, 20), powers(model, reference, 20)):
        table = fit_weights(reference, model.sde, r).table.table(model.sde)
        errors.append(trimmed_error(reference.coupling.run(table, model), reference.coupling.x_0))
    assert errors[0] < 0.5 * errors[1]


def test_equal_error_nodes_stay_above_the_least_noise(model):
    """Where t_min is larger than the details of the data, all steps would like to be below it."""
    noisy = ExactScoreModel(model.target, EDMSDE(t_min=0.2))
    reference = reference_run(noisy)
    for early in (False, True):
        r = equal_error_nodes(reference, noisy.sde, 20, early)
        assert r[-1].item() == pytest.approx(0.2, rel=1e-6)
        assert (r.diff() < 0).all()

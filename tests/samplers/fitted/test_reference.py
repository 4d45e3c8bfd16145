"""The reference run: that it has converged, what it keeps, and the noises that it joins with data."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import Trigonometric, phi_to_clean
from samplers.fitted.reference import no_noise, reference_coupling, reference_run, trimmed_error
from scoresde import (
    EDMSDE,
    CallableScoreModel,
    DenoisedParametrization,
    ExactScoreModel,
    GaussianMixture,
)


def test_the_reference_is_the_converged_flow(model, reference):
    fine = phi_to_clean(model.sde, 800, 2.0, 0.5)
    end = Trigonometric(3).run(model, reference.coupling.x_T, fine, no_noise())
    assert (reference.coupling.x_0 - end).square().mean(1).sqrt().median() < 3e-4


def test_between_its_levels_the_denoiser_is_interpolated(model, reference):
    u, denoised = reference.at(torch.tensor([3.0, 0.2], dtype=torch.float64))
    assert u.shape == denoised.shape == (2, 64)
    for k, noise_level in enumerate((3.0, 0.2)):
        exact = model.denoise(u[k].view(32, 2), noise_level).flatten()
        torch.testing.assert_close(exact, denoised[k], rtol=1e-3, atol=1e-3)


def test_a_coupling_is_that_of_the_converged_flow_whatever_the_batch(model, reference, coupling):
    fine = reference_coupling(
        model, reference.sigma_data, num_samples=1000, seed=1, num_evaluations=800, batch_size=500
    )
    assert torch.equal(fine.x_T, coupling.x_T)
    assert trimmed_error(coupling.x_0, fine.x_0) < 3e-4


def test_conditions_are_spread_over_the_samples():
    """A dict, more or fewer entries than samples, or one number: runs and couplings see the same ones, part by part."""
    seen = []

    def denoise(x, t, cond):
        seen.append(cond["label"].tolist())
        return x / (1 + t.view(-1, 1) ** 2)

    model = CallableScoreModel(denoise, DenoisedParametrization(), EDMSDE(), (2,))
    given = ((7, [7] * 4), (torch.tensor([5, 6]), [5, 6, 5, 6]), (torch.arange(8), [0, 2, 4, 6]))
    for labels, spread in given:
        seen.clear()
        run = reference_run(model, {"label": labels}, num_samples=4)
        assert seen == [spread] * len(seen)
        assert run.coupling.cond["label"].tolist() == spread
        seen.clear()
        coupling = reference_coupling(model, 1.0, {"label": labels}, num_samples=4, batch_size=3)
        assert seen == [spread[:3]] * (len(seen) // 2) + [spread[3:]] * (len(seen) // 2)
        assert coupling.take(slice(1, 3)).cond["label"].tolist() == spread[1:3]


def test_the_spread_is_between_the_entries_deviation_and_that_of_the_first_direction():
    """Two points (1, ..., 1) and (-1, ..., -1) of 64 entries, and noise of 0.1."""
    corners = torch.stack([torch.ones(64), -torch.ones(64)])
    target = GaussianMixture(torch.tensor([0.5, 0.5]), corners, (0.01 * torch.eye(64)).expand(2, 64, 64))
    reference = reference_run(ExactScoreModel(target.to(dtype=torch.float64), EDMSDE()), num_samples=200)
    assert reference.sigma_data == pytest.approx(1, abs=0.02)
    assert reference.spread == pytest.approx(math.sqrt(8), rel=0.02)


def test_trimmed_error_leaves_out_the_worst_three_of_a_hundred():
    x = torch.ones(100, 2)
    x[:3] = 1e3
    assert trimmed_error(x, torch.zeros(100, 2)) == pytest.approx(1)

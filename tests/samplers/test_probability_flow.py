"""The adaptive probability flow keeps to its tolerance, and says what it does not take."""

from __future__ import annotations

import pytest
import torch

from samplers import Heun, ProbabilityFlow
from scoresde import VPSDE, ExactScoreModel, UsageError
from tests.analytic import gaussian, mixture
from tests.convergence import Flow, inner_grid, noise_for


def test_the_error_of_the_adaptive_flow_follows_its_tolerance(sde, device):
    target, errors = gaussian(device), []
    model = ExactScoreModel(target, sde)
    grid = inner_grid(sde, 1, "time")
    start, end = (sde.level(t.to(device)) for t in grid)
    x_T = start.sigma * noise_for(16, device).normal(0, (3,), torch.float64)
    exact = target.probability_flow(x_T, (start.alpha, start.sigma), (end.alpha, end.sigma))
    for tolerance in (1e-3, 1e-6, 1e-9):
        result = ProbabilityFlow(tolerance, tolerance).run(model, x_T, grid, noise_for(16, device))
        errors.append((result - exact).abs().max().item())
        assert errors[-1] < 30 * tolerance
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


def test_a_tighter_tolerance_takes_more_evaluations(device):
    model = ExactScoreModel(gaussian(device), VPSDE())
    x_T = noise_for(4, device).normal(0, (3,), torch.float64)
    counts = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        sampler, calls = ProbabilityFlow(tolerance, tolerance), []
        prepared = sampler.prepare(model, sampler.grid(model))
        samples = prepared(x_T, noise_for(4, device), callback=lambda row, *rest, calls=calls: calls.append(row))
        assert calls == list(range(samples.nfe))
        counts.append(samples.nfe)
    assert counts[0] < counts[1] < counts[2]
    assert ProbabilityFlow().num_evaluations(model, ProbabilityFlow().grid(model)) is None


def test_only_the_ends_of_a_grid_matter(device):
    model, sampler = ExactScoreModel(gaussian(device), VPSDE()), ProbabilityFlow()
    ends = inner_grid(model.sde, 1, "time")
    x_T = Flow(model.target, model.sde.level(ends[0].to(device))).x_T
    between = inner_grid(model.sde, 7, "time")
    noise = noise_for(64, device)
    assert torch.equal(sampler.run(model, x_T, between, noise), sampler.run(model, x_T, ends, noise))


def test_a_number_of_steps_is_refused_and_the_remedy_works():
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match=r"num_steps=50: ProbabilityFlow chooses its steps .*; Heun\(\) takes"):
        ProbabilityFlow().grid(model, 50)
    assert len(Heun().grid(model, 50)) == 51

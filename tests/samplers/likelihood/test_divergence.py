"""Traces by probes: their error bars, and when they are the trace itself."""

from __future__ import annotations

import pytest
import torch

from samplers import Exact, Probes, adaptive_log_prob, log_prob
from scoresde import EDMSDE, VPSDE, ExactScoreModel, UsageError
from tests.analytic import mixture
from tests.densities import rmse


@pytest.mark.parametrize("probes", [Probes(), Probes(3), Probes(4, orthogonal=True)], ids=str)
def test_error_bars_of_probes_hold_what_they_say(probes, device):
    # 600 cases: the share within 95 % has a standard deviation of 0.9 %
    target = mixture(device, (1, 3, 4))
    x = target.sample(600, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, VPSDE())
    exact = log_prob(model, x, prior=target, divergence=Exact())
    found = log_prob(model, x, prior=target, divergence=probes)
    error = found.log_prob - exact.log_prob
    inside = (error.abs() < 1.96 * found.standard_error).double().mean().item()
    assert 0.92 < inside < 0.98
    assert abs((error / found.standard_error).mean().item()) < 4 / 600**0.5
    torch.testing.assert_close(found.latent, exact.latent)


def test_all_orthogonal_probes_are_the_trace_itself(device):
    target = mixture(device, (5,))  # 8 rows, cut to 5 columns
    x = target.sample(6, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, EDMSDE())
    exact = log_prob(model, x, divergence=Exact(3))
    found = log_prob(model, x, divergence=Probes(8, orthogonal=True))
    torch.testing.assert_close(found.log_prob, exact.log_prob, rtol=1e-9, atol=1e-9)
    assert not found.standard_error.any()


def test_fresh_probes_beat_one_for_the_whole_way(device):
    target = mixture(device, (1, 4, 4))
    x = target.sample(200, torch.Generator(device).manual_seed(1))
    model = ExactScoreModel(target, VPSDE())
    fresh = log_prob(model, x, prior=target, divergence=Probes())
    fixed = adaptive_log_prob(model, x, prior=target, divergence=Probes(2), rtol=1e-3, atol=1e-3)
    assert rmse(fresh, target, x) < 0.5 * rmse(fixed, target, x)
    assert fixed.standard_error.isfinite().all()
    alone = adaptive_log_prob(model, x[:3], prior=target, divergence=Probes(), rtol=1e-2, atol=1e-2)
    assert alone.standard_error.isnan().all()  # one probe cannot tell


def test_mistakes_are_named(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    x = torch.zeros(2, 2, dtype=torch.float64, device=device)
    with pytest.raises(UsageError, match="num_probes=0"):
        Probes(0)
    with pytest.raises(UsageError, match="chunk=0"):
        Exact(0)
    with pytest.raises(UsageError, match="there are 2 that are orthogonal"):
        log_prob(model, x, divergence=Probes(3, orthogonal=True))

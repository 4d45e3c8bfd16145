"""Rescaled and projected guidance do what they are named for; momentum goes with one evaluation a step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from samplers import (
    DDIM,
    Ancestral,
    Heun,
    Midpoint,
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    log_prob,
    sample,
)
from scoresde import APG, VPSDE, ClassifierFreeGuidance, Rescale, UsageError
from scoresde.guidance import Linear
from scoresde.noise import Noise
from tests.guidance.labelled import labelled


def pair(shape=(3, 2, 4)):
    """D, D_ref `(5, *shape)`."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(5, *shape, dtype=torch.float64, generator=generator) for _ in range(2))


def test_rescaling_brings_the_deviation_back():
    x0_hat, reference = pair()
    guided = Rescale(1.0).start()(x0_hat, reference, 7.5)
    torch.testing.assert_close(guided.std((1, 2, 3)), x0_hat.std((1, 2, 3)), rtol=1e-12, atol=0)
    plain = Linear().start()(x0_hat, reference, 7.5)
    torch.testing.assert_close(Rescale(0.0).start()(x0_hat, reference, 7.5), plain, rtol=1e-12, atol=1e-12)
    assert plain.std() > 2 * guided.std()


def test_a_projected_difference_is_at_right_angles_to_the_estimate_and_short():
    x0_hat, reference = pair()
    change = APG(0.0).start()(x0_hat, reference, 3.0) - x0_hat
    assert (change * x0_hat).sum((1, 2, 3)).abs().max() < 1e-12
    for eta, radius in ((1.0, math.inf), (1.0, 1.5)):
        change = APG(eta, radius).start()(x0_hat, reference, 3.0) - x0_hat
        norms = change.flatten(1).norm(dim=1)
        expected = (2 * (x0_hat - reference)).flatten(1).norm(dim=1).clamp(max=2 * radius)
        torch.testing.assert_close(norms, expected, rtol=1e-12, atol=0)


def test_without_its_parts_projected_guidance_is_linear():
    x0_hat, reference = pair()
    found = APG(eta=1.0).start()(x0_hat, reference, 2.5)
    torch.testing.assert_close(found, Linear().start()(x0_hat, reference, 2.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_size", [2, 4])
def test_momentum_is_a_running_sum_along_the_steps_of_each_batch(batch_size, device):
    """DDIM written out, with the differences of the steps before; a second batch begins anew."""
    model, w, beta = labelled(VPSDE(), device), 3.0, -0.4
    labels = torch.tensor([0, 1, 2, 0], device=device)
    grid = DDIM().grid(model, 8)
    noise = Noise(0, torch.arange(4, device=device))
    x = model.sde.sigma(grid[0]).item() * noise.normal(0, (2,), torch.float64)
    total = 0
    for t, s in itertools.pairwise(grid):
        start, end = (model.sde.level(each) for each in (t, s))
        given, none = model.denoise(x, t.item(), labels), model.denoise(x, t.item())
        total = given - none + beta * total
        x0_hat = given + (w - 1) * total
        x = end.alpha * x0_hat + end.sigma * (x - start.alpha * x0_hat) / start.sigma if s > 0 else x0_hat
    guided = ClassifierFreeGuidance(model, w, rule=APG(1.0, momentum=beta))
    found = sample(guided, DDIM(), 4, grid=grid, cond=labels, batch_size=batch_size).x
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_momentum_is_refused_where_steps_have_several_evaluations(device):
    guided = ClassifierFreeGuidance(labelled(VPSDE(), device), 3.0, rule=APG(momentum=-0.5))
    labels = torch.tensor([0, 1], device=device)
    assert sample(guided, Ancestral(), 2, num_steps=5, cond=labels).nfe == 10
    for sampler in (Heun(), Midpoint(), PredictorCorrector(snr=0.2)):
        with pytest.raises(UsageError, match="guidance with momentum needs one evaluation a step"):
            sample(guided, sampler, 2, num_steps=5, cond=labels)
    with pytest.raises(UsageError, match="momentum of APG"):
        sample(guided, ProbabilityFlow(), 2, cond=labels)
    with pytest.raises(UsageError, match="momentum of APG"), pytest.warns(UserWarning, match="NormPredictorCorrector"):
        sample(guided, NormPredictorCorrector(), 2, num_steps=5, cond=labels)
    with pytest.raises(UsageError, match="momentum of APG"):
        log_prob(guided, torch.zeros(2, 2, dtype=torch.float64, device=device), labels)

"""Weights that belong to the steps of a grid: CFG++ and the mean form of classifier guidance, written out."""

from __future__ import annotations

import itertools

import pytest
import torch

from samplers import DDIM, Ancestral, sample, uniform_log_snr
from scoresde import ClassifierFreeGuidance, GradientGuidance, UsageError
from scoresde.guidance import cfg_plus_plus, classifier_log_prob, mean_form
from scoresde.noise import Noise
from scoresde.sde import bridge, transition
from tests.analytic import SDES
from tests.guidance.labelled import labelled

paths = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
LABELS = torch.tensor([0, 1, 2, 1])


def begin(model, grid, device):
    """x_T, and the noise."""
    noise = Noise(0, torch.arange(4, device=device))
    return model.sde.sigma(grid[0]).item() * noise.normal(0, (2,), torch.float64), noise


@paths
def test_cfg_plus_plus_is_ddim_that_renoises_with_the_unconditional_estimate(sde, device):
    model, labels, strength = labelled(sde, device), LABELS.to(device), 0.6
    grid = DDIM().grid(model, 7)
    x, _ = begin(model, grid, device)
    for t, s in itertools.pairwise(grid):
        start, end = sde.level(t), sde.level(s)
        none = model.denoise(x, t.item())
        x0_hat = none + strength * (model.denoise(x, t.item(), labels) - none)
        x = x0_hat if s == 0 else end.alpha * x0_hat + end.sigma * (x - start.alpha * none) / start.sigma
    guided = ClassifierFreeGuidance(model, cfg_plus_plus(strength, sde, grid))
    torch.testing.assert_close(sample(guided, DDIM(), 4, grid=grid, cond=labels).x, x, rtol=1e-8, atol=1e-8)


@paths
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_mean_form_shifts_the_mean_of_each_step_by_the_variance_times_the_gradient(sde, variance, device):
    model, labels, gamma = labelled(sde, device), LABELS.to(device), 1.7
    log_prob = classifier_log_prob(model.log_posterior)
    grid = Ancestral(variance=variance).grid(model, 6)
    x, noise = begin(model, grid, device)
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        start, end = sde.level(t), sde.level(s)
        x0_hat = model.denoise(x, t.item())
        if s == 0:
            x = x0_hat
            break
        on_x0, on_xt, std = bridge(end, start)
        std = std if variance == "posterior" else transition(end, start)[1]
        at = x.clone().requires_grad_()
        gradient = torch.autograd.grad(log_prob(at, start, labels).sum(), at)[0]
        mean = on_x0 * x0_hat + on_xt * x + gamma * std**2 * gradient
        x = mean + std * noise.normal(k + 1, (2,), torch.float64)
    guided = GradientGuidance(model, log_prob, mean_form(gamma, sde, grid, variance))
    found = sample(guided, Ancestral(variance=variance), 4, grid=grid, cond=labels).x
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


def test_the_equivalent_weight_of_cfg_plus_plus_grows_with_the_number_of_steps():
    model = labelled(SDES["vp"])
    weights = []
    for steps in (10, 40, 160):
        grid = uniform_log_snr(model.sde, steps)
        middle = torch.tensor([1.0], dtype=torch.float64)
        weights.append(cfg_plus_plus(0.5, model.sde, grid)(middle).item())
    assert weights[0] < 0.4 * weights[1] < 0.16 * weights[2]


def test_mistakes_are_named():
    grid = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    with pytest.raises(UsageError, match="strength=-1"):
        cfg_plus_plus(-1.0, SDES["vp"], grid)

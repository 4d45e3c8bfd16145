"""Editing by noise and denoising: how far it goes, and where it starts."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, Ancestral, DPMSolver, Heun, ProbabilityFlow, Replacement, edit, prepare
from scoresde import VESDE, VPSDE, ClassifierFreeGuidance, ExactScoreModel, Gaussian, Noise, UsageError
from scoresde.inverse import MeasuredModel, PiGDM
from scoresde.operators import Mask
from tests.analytic import SDES, gaussian, mixture
from tests.guidance.labelled import labelled
from tests.inverse.problems import PATHS
from tests.operators.cases import randn

paths = pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)


def noised(sde, x_0, noise_level, seed=0):
    """What an edit starts from, and its level."""
    level = sde.at_noise_level(torch.tensor(noise_level, dtype=torch.float64))
    eps = Noise(seed, torch.arange(len(x_0), device=x_0.device)).normal(0, tuple(x_0.shape[1:]), x_0.dtype)
    return level.alpha * x_0 + level.sigma * eps, level


@paths
@pytest.mark.parametrize("noise_level", [0.1, 0.7, 2.0])
def test_an_edit_is_the_flow_from_where_it_starts(noise_level, sde, device):
    """The exact flow of a Gaussian to the last level, and D there; errors of order 2 fall by 4 for twice the steps."""
    prior, x_0 = gaussian(device), 0.5 * randn(6, 3).to(device)
    x_t, level = noised(sde, x_0, noise_level)
    model, errors = ExactScoreModel(prior, sde), []
    last = sde.level(torch.tensor(sde.t_end, dtype=torch.float64, device=device))
    exact = prior.probability_flow(x_t, (level.alpha.to(x_t), level.sigma.to(x_t)), (last.alpha, last.sigma))
    exact = model.denoise_at(exact, last)
    for num_steps in (40, 80):
        found = edit(model, Heun(), x_0, noise_level, num_steps=num_steps)
        errors.append((found.x - exact).abs().max().item())
    assert errors[0] < 0.05
    assert errors[1] < 0.4 * errors[0]
    once = edit(model, DDIM(), x_0, noise_level, num_steps=400).x
    torch.testing.assert_close(once, exact, rtol=0, atol=0.02)


def test_edits_of_one_sample_have_the_mean_and_variance_of_the_flow(device):
    """For N(0, s^2) the flow scales by s / sqrt(alpha^2 s^2 + sigma^2) = k: mean k alpha x_0, deviation k sigma.

    2000 edits within 5 standard errors: level 1e-6.
    """
    s, r = 0.6, 0.9
    prior = Gaussian(torch.zeros(1, dtype=torch.float64, device=device), torch.full((1,), s**2, device=device).double())
    x_0 = torch.full((2000, 1), 1.3, dtype=torch.float64, device=device)
    x = edit(ExactScoreModel(prior, VPSDE()), DDIM(), x_0, r, num_steps=200).x
    k = s / (s**2 + r**2) ** 0.5  # of x_t / alpha
    assert abs(x.mean().item() - 1.3 * k) < 5 * k * r / 2000**0.5 + 0.005  # and 200 steps of order 1
    assert abs(x.std().item() / (k * r) - 1) < 5 / 4000**0.5 + 0.005


def test_little_noise_keeps_a_sample_and_much_forgets_it(device):
    model = ExactScoreModel(mixture(device), VESDE())
    first, other = randn(5, 2).to(device), randn(5, 2, seed=1).to(device)
    for noise_level in (0.03, 0.1):
        moved = (edit(model, DDIM(), first, noise_level, num_steps=20).x - first).norm(dim=1)
        assert moved.max() < 60 * noise_level  # the score is bounded there
        assert moved.min() > 0
    ends = [edit(model, DDIM(), x_0, 49.0, num_steps=60).x for x_0 in (first, other)]
    apart = (ends[0] - ends[1]).norm(dim=1) / (first - other).norm(dim=1)
    assert apart.median() < 0.05  # samples of the prior, of one noise


def test_an_edit_starts_at_its_noise_level_under_every_sde(sde, device):
    """To rounding of the time; and the steps go down from there."""
    model = ExactScoreModel(mixture(device), sde)
    for noise_level in (0.05, 0.8):
        start = model.sde.at_noise_level(torch.tensor(noise_level, dtype=torch.float64)).t.item()
        part = model.under(sde.restricted(sde.t_min, start))
        grid = Ancestral().grid(part, 6)
        assert grid[0].item() == pytest.approx(start, rel=1e-12)
        x_0 = randn(3, 2).to(device)
        x_t, _ = noised(sde, x_0, noise_level)
        expected = prepare(model, Ancestral(), grid)(x_t, Noise(0, torch.arange(3, device=device))).x
        found = edit(model, Ancestral(), x_0, noise_level, num_steps=6)
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)
        assert found.nfe == 6


def test_the_largest_and_nearly_the_smallest_noise_level_are_taken(device):
    for sde in SDES.values():
        model, x_0 = ExactScoreModel(mixture(device), sde), randn(2, 2).to(device)
        highest, lowest = sde.level(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64)).noise_level.tolist()
        for noise_level in (highest, 1.001 * lowest):
            assert edit(model, DDIM(), x_0, noise_level, num_steps=4).x.isfinite().all()


@pytest.mark.parametrize("sampler", [DDIM(), Ancestral(), Heun(), DPMSolver(2)], ids=str)
def test_an_edit_does_not_depend_on_its_batch_and_repeats_under_a_seed(sampler, device):
    model, x_0 = ExactScoreModel(mixture(device), VPSDE()), randn(7, 2).to(device)
    together = edit(model, sampler, x_0, 0.8, num_steps=8, seed=3)
    apart = edit(model, sampler, x_0, 0.8, num_steps=8, seed=3, batch_size=2)
    torch.testing.assert_close(apart.x, together.x, rtol=0, atol=1e-10)
    assert apart.nfe == together.nfe
    assert torch.equal(edit(model, sampler, x_0, 0.8, num_steps=8, seed=3).x, together.x)
    assert not torch.allclose(edit(model, sampler, x_0, 0.8, num_steps=8, seed=4).x, together.x, atol=0.01)
    copies = edit(model, sampler, x_0[:1].expand(3, -1), 0.8, num_steps=8).x
    assert (copies[0] - copies[1]).abs().max() > 0.01  # each has a noise of its own


def test_an_edit_takes_conditions_and_adaptive_steps(device):
    model = labelled(VPSDE(), device)
    x_0, labels = randn(4, 2).to(device), torch.tensor([0, 1, 2, 1])
    drawn = edit(ClassifierFreeGuidance(model, 2.0), DDIM(), x_0, 2.0, num_steps=9, cond=labels, batch_size=3)
    each = edit(ClassifierFreeGuidance(model, 2.0), DDIM(), x_0, 2.0, num_steps=9, cond=labels.tolist())
    torch.testing.assert_close(drawn.x, each.x, rtol=1e-9, atol=1e-9)
    assert drawn.nfe == 18
    flow = edit(model, ProbabilityFlow(1e-7, 1e-7), x_0, 0.5, cond=1).x
    fine = edit(model, Heun(), x_0, 0.5, cond=1, num_steps=200).x
    torch.testing.assert_close(flow, fine, rtol=0, atol=2e-3)


def test_a_part_may_be_held_fast_while_the_rest_is_edited(device):
    """By replacement, or by a model of the posterior."""
    mask = Mask(torch.tensor([True, False, False]))
    prior = ExactScoreModel(mixture(device, (3,)), VPSDE())
    x_0 = randn(4, 3).to(device)
    held = edit(MeasuredModel(prior, mask, 0.0), Replacement(), x_0, 0.8, num_steps=8, cond=mask(x_0)).x
    assert torch.equal(held[:, 0], x_0[:, 0])
    assert (held[:, 1:] - x_0[:, 1:]).abs().max() > 0.1
    pulled = edit(PiGDM(prior, mask, 0.01), DDIM(), x_0, 0.8, num_steps=30, cond=mask(x_0)).x
    assert (pulled[:, 0] - x_0[:, 0]).abs().max() < 0.2


def test_an_edit_is_in_the_type_of_the_model(device):
    model = ExactScoreModel(mixture(device).to(dtype=torch.float32), VPSDE())
    x_0 = randn(2, 2)
    assert edit(model, DDIM(), x_0, 0.5, num_steps=3).x.dtype == torch.float32


MISTAKES = {
    "no noise": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.0), "noise_level=0: must lie between"),
    "negative": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), -1.0), "noise_level=-1: must lie between"),
    "NaN": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), float("nan")), "noise_level=nan"),
    "too much": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 1e6), r"noise_level=1e\+06: must lie between"),
    "shape": (
        lambda model: edit(model, DDIM(), torch.zeros(2, 3), 0.5),
        r"x_0 of shape \(2, 3\).*need .*\(batch, 2\)",
    ),
    "steps": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.5, num_steps=0), "num_steps=0"),
    "condition": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.5, cond=1), "cond: an exact model"),
    "conditions": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.5, cond=[1]), "cond of length 1: need .* 2"),
    "seed": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.5, seed=-1), "seed=-1"),
    "batch": (lambda model: edit(model, DDIM(), torch.zeros(2, 2), 0.5, batch_size=0), "batch_size=0"),
    "sampler": (lambda model: edit(model, DDIM, torch.zeros(2, 2), 0.5), "need a sampler object"),
    "model": (lambda model: edit(None, DDIM(), torch.zeros(2, 2), 0.5), "need a ScoreModel"),
    "nothing": (lambda model: edit(model, DDIM(), torch.zeros(0, 2), 0.5), "x_0"),
    "missing": (lambda model: edit(model, DDIM(), torch.full((2, 2), torch.nan), 0.5), "x_0: .*NaN"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make(ExactScoreModel(mixture(), VPSDE()))

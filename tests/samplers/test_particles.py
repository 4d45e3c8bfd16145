"""Weighted particles draw what guidance promises: products, powers and rewards of known distributions."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import DDIM, Ancestral, sample, sample_particles
from scoresde import (
    APG,
    VESDE,
    VPSDE,
    Autoguidance,
    ClassifierFreeGuidance,
    ConditionedModel,
    ExactLabelledModel,
    ExactScoreModel,
    Gaussian,
    GaussianMixture,
    GradientGuidance,
    ProductModel,
    RectifiedFlowSDE,
    UsageError,
)
from scoresde.guidance import classifier_log_prob
from tests.guidance.labelled import labelled

paths = pytest.mark.parametrize("sde", [VPSDE(), VESDE(), RectifiedFlowSDE()], ids=lambda sde: type(sde).__name__)
COUNT = 4000


def line(means, deviations, weights, device):
    """A mixture on a line; float64."""
    means, deviations, weights = (
        torch.tensor(part, dtype=torch.float64, device=device) for part in (means, deviations, weights)
    )
    return GaussianMixture(weights, means[:, None], deviations**2)


def moments(log_density, device):
    """Mean and deviation of a density on a line, by quadrature."""
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64, device=device)
    p = log_density(x[:, None]).softmax(0)
    mean = (p * x).sum()
    return mean.item(), ((p * (x - mean) ** 2).sum()).sqrt().item()


def density(target, x):
    one = torch.ones((), dtype=torch.float64, device=x.device)
    return target.log_prob(x, one, 0 * one)


@paths
@pytest.mark.parametrize("w", [2.0, 4.0])
def test_guided_particles_are_those_of_the_powered_distribution(sde, w, device):
    """Means and deviations within 5 standard errors of half as many samples; reverse SDE and flow are far off."""
    mixture = line([-1.0, 0.0, 1.0, 0.6], [0.6, 0.5, 0.4, 0.7], [1.0, 2.0, 1.0, 2.0], device)
    model = ExactLabelledModel(mixture, torch.tensor([0, 0, 1, 1], device=device), sde)
    mean, deviation = moments(lambda x: (1 - w) * density(mixture, x) + w * density(model.targets[1], x), device)
    guided = ClassifierFreeGuidance(model, w)
    found = sample_particles(guided, 1, COUNT, num_steps=150, cond=1)
    x = found.x[0, :, 0]
    bar = 5 * deviation / (COUNT / 2) ** 0.5
    assert abs(x.mean().item() - mean) < bar
    assert abs(x.std().item() - deviation) < bar
    assert found.nfe == 300
    assert found.effective.shape == (150, 1)
    assert found.effective.min() > 0.3
    plain = sample(guided, DDIM(), COUNT, num_steps=150, cond=1).x
    assert abs(plain.mean().item() - mean) > bar


def test_a_product_of_gaussians_is_drawn(device):
    means = torch.tensor([[1.0, -1.0], [-0.5, 0.0]], dtype=torch.float64, device=device)
    variances = torch.tensor([[0.5, 0.2], [0.3, 1.0]], dtype=torch.float64, device=device)
    one, other = (ExactScoreModel(Gaussian(m, v), VPSDE()) for m, v in zip(means, variances, strict=True))
    product = ProductModel(one, other)
    precision = (1 / variances).sum(0)
    mean = (means / variances).sum(0) / precision
    found = sample_particles(product, 1, COUNT, num_steps=200)
    bar = 5 * precision**-0.5 / (COUNT / 8) ** 0.5
    assert ((found.x[0].mean(0) - mean).abs() < bar).all()
    assert ((found.x[0].std(0) - precision**-0.5).abs() < bar).all()


def test_a_reward_tilts_by_what_it_says_and_not_by_what_its_gradient_draws(device):
    """f = 1.5 cos(2 D), of the estimate at each level: its gradient alone draws something else."""
    target = line([-1.5, 1.0], [0.5, 0.7], [1.0, 1.0], device)

    def reward(x, level, cond):
        return 1.5 * torch.cos(2 * x[:, 0])

    model = GradientGuidance(ExactScoreModel(target, VPSDE()), reward, of="x0_hat")
    mean, deviation = moments(lambda x: density(target, x) + reward(x, None, None), device)
    found = sample_particles(model, 1, COUNT, num_steps=320)
    bar = 5 * deviation / (COUNT / 2) ** 0.5
    assert abs(found.x.mean().item() - mean) < bar
    assert abs(found.x.std().item() - deviation) < bar
    plain = sample(model, Ancestral(), COUNT, num_steps=320).x
    assert max(abs(plain.mean().item() - mean), abs(plain.std().item() - deviation)) > bar


def test_an_exact_classifier_needs_no_weights(device):
    """At gamma = 1 the guided steps draw the conditional distribution: effective sizes stay near one."""
    model = labelled(VPSDE(), device)
    guided = GradientGuidance(model, classifier_log_prob(model.log_posterior))
    found = sample_particles(guided, 3, 500, num_steps=200, cond=torch.tensor([0, 1, 2]))
    assert found.effective.median() > 0.9
    for label in range(3):
        expected = model.targets[label].sample(20_000, torch.Generator(device).manual_seed(0))
        error = (found.x[label].mean(0) - expected.mean(0)).abs()
        assert (error < 5 * expected.std(0) / 400**0.5).all()


def test_problems_do_not_mix(device):
    model = labelled(VPSDE(), device)
    guided = ClassifierFreeGuidance(model, 3.0)
    both = sample_particles(guided, 2, 50, num_steps=20, cond=torch.tensor([0, 2]))
    first = sample_particles(guided, 1, 50, num_steps=20, cond=torch.tensor([0]), batch_size=7)
    torch.testing.assert_close(both.x[:1], first.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both.effective[:, :1], first.effective, rtol=1e-9, atol=1e-9)


def test_guidance_that_is_off_leaves_all_weights_equal(device):
    model = labelled(VPSDE(), device)
    for guided in (ClassifierFreeGuidance(model, 1.0), Autoguidance(model, model, 2.0)):
        found = sample_particles(guided, 1, 30, num_steps=10, cond=1)
        assert found.effective.min() == pytest.approx(1.0)
        plain = sample(model, Ancestral(), 30, num_steps=10, cond=1).x
        torch.testing.assert_close(found.x[0].sort(0).values, plain.sort(0).values, rtol=1e-9, atol=1e-9)


def test_resampling_copies_each_particle_as_often_as_its_weight_says(device):
    """Systematic: within one of its share, whatever the uniform number; here seen through rewards that are constant."""
    target = Gaussian(torch.zeros(1, dtype=torch.float64, device=device), torch.ones(1, device=device).double())
    model = GradientGuidance(
        ExactScoreModel(target, VPSDE()), lambda x, level, cond: math.log(3) * (x[:, 0] > 0) + 0 * x[:, 0]
    )
    grid = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = sample_particles(model, 1, 1000, grid=grid)
    positive = (sample(ExactScoreModel(target, VPSDE()), DDIM(), 1000, grid=grid).x > 0).sum().item()
    share = 3 * positive / (3 * positive + 1000 - positive)
    assert abs((found.x > 0).sum().item() - 1000 * share) <= 2


def test_mistakes_are_named(device):
    model = labelled(VPSDE(), device)
    conditioned = ConditionedModel(model, torch.tensor([0]))
    product = ProductModel(conditioned, conditioned)
    for make, message in (
        (lambda: sample_particles(model, 1, 10), "ExactLabelledModel: gives no weights"),
        (lambda: sample_particles(ClassifierFreeGuidance(model, 2.0, (0.1, 1.0)), 1, 10, cond=0), "leave interval"),
        (lambda: sample_particles(ClassifierFreeGuidance(model, 2.0, rule=APG()), 1, 10, cond=0), "leave interval"),
        (lambda: sample_particles(ProductModel(product, conditioned), 1, 10), "a product of products"),
        (lambda: sample_particles(ProductModel(conditioned, conditioned, 1.0, -1.0), 1, 10), "need a positive sum"),
        (lambda: sample_particles(product, 0, 10), "num_problems=0"),
        (lambda: sample_particles(product, 1, 0), "num_particles=0"),
        (lambda: sample_particles(product, 1, 5, threshold=2.0), "threshold=2.0"),
        (lambda: sample_particles(product, 1, 5, num_steps=3, grid=torch.tensor([1.0, 0.0])), "give one of the two"),
        (lambda: sample_particles(ClassifierFreeGuidance(model, 2.0), 1, 5), "cond: guidance needs a condition"),
    ):
        with pytest.raises(UsageError, match=message):
            make()

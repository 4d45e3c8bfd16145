"""Guidance by gradients: Bayes' rule for exact classifiers, tilted Gaussians, and mistakes."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, Heun, log_prob, sample
from scoresde import (
    VPSDE,
    ConditionedModel,
    ExactScoreModel,
    Gaussian,
    GradientGuidance,
    ProductModel,
    UsageError,
)
from scoresde.guidance import classifier_log_prob
from scoresde.sde import Level
from tests.analytic import SDES, gaussian
from tests.guidance.labelled import labelled
from tests.guidance.test_pairs import states

paths = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


@paths
def test_an_exact_classifier_makes_the_conditional_denoiser(sde, device):
    model = labelled(sde, device)
    guided = GradientGuidance(model, classifier_log_prob(model.log_posterior))
    for share in (0.02, 0.3, 0.9):
        level = sde.level(torch.tensor(sde.t_min + share * (sde.t_max - sde.t_min), dtype=torch.float64, device=device))
        x_t, _, labels = states(sde, device)
        expected = model.denoise_at(x_t, level, labels)
        torch.testing.assert_close(guided.denoise_at(x_t, level, labels), expected, rtol=1e-10, atol=1e-10)


@paths
def test_a_quadratic_function_tilts_a_gaussian_into_a_gaussian(sde, device):
    """N(m, C) exp(-gamma x^T A x / 2) has the precision C^-1 + gamma A, at each level."""
    target = gaussian(device)
    generator = torch.Generator().manual_seed(4)
    root = torch.randn(3, 3, dtype=torch.float64, generator=generator).to(device)
    A, gamma = root @ root.T, 0.7
    guided = GradientGuidance(ExactScoreModel(target, sde), lambda x, level, cond: -0.5 * ((x @ A) * x).sum(1), gamma)
    level = sde.level(torch.tensor(0.6 * sde.t_max, dtype=torch.float64, device=device))
    x_t = torch.randn(5, 3, dtype=torch.float64, generator=generator).to(device)
    score = ExactScoreModel(target, sde).score(x_t, level.t)
    torch.testing.assert_close(guided.score(x_t, level.t), score - gamma * x_t @ A, rtol=1e-8, atol=1e-8)


def test_a_function_of_the_clean_estimate_goes_back_through_the_model(device):
    """For N(0, s^2 I) the denoiser is linear, D = a x; so grad of -|D - m|^2 / 2 is -a (a x - m)."""
    target = Gaussian(
        torch.zeros(2, dtype=torch.float64, device=device), torch.full((2,), 0.25, device=device).double()
    )
    model = ExactScoreModel(target, VPSDE())
    goal = torch.tensor([1.0, -2.0], dtype=torch.float64, device=device)
    guided = GradientGuidance(model, lambda x, level, cond: -0.5 * (x - goal).square().sum(1), 0.3, of="x0_hat")
    x_t, level, _ = states(model.sde, device)
    a = level.alpha * 0.25 / (0.25 * level.alpha**2 + level.sigma**2)
    expected = a * x_t - 0.3 * level.sigma**2 / level.alpha * a * (a * x_t - goal)
    torch.testing.assert_close(guided.denoise_at(x_t, level), expected, rtol=1e-10, atol=1e-10)


def test_two_conditions_are_added_by_wrapping_twice_or_as_a_product(device):
    model = labelled(VPSDE(), device)
    x_t, level, _ = states(model.sde, device)
    given = [torch.full((len(x_t),), label, device=device) for label in (0, 2)]
    none, first, second = (model.denoise_at(x_t, level, cond) for cond in (None, *given))
    expected = none + 0.8 * (first - none) + 0.6 * (second - none)
    with_label = [lambda x, level, cond, label=label: model.log_posterior(x, level)[:, label] for label in (0, 2)]
    twice = GradientGuidance(GradientGuidance(model, with_label[0], 0.8), with_label[1], 0.6)
    torch.testing.assert_close(twice.denoise_at(x_t, level), expected, rtol=1e-9, atol=1e-9)
    parts = [ConditionedModel(model, label) for label in (torch.tensor([0]), torch.tensor([2]), torch.tensor([3]))]
    product = ProductModel(ProductModel(parts[0], parts[1], 0.8, 0.6), parts[2], 1.0, -0.4)
    torch.testing.assert_close(product.denoise_at(x_t, level), expected, rtol=1e-9, atol=1e-9)
    assert sample(product, DDIM(), 3, num_steps=5).nfe == 15


def test_a_product_of_gaussians_is_one_at_each_level(device):
    one, other = (
        gaussian(device),
        Gaussian(torch.ones(3, device=device).double(), 0.5 * torch.ones(3, device=device).double()),
    )
    sde = VPSDE()
    product = ProductModel(ExactScoreModel(one, sde), ExactScoreModel(other, sde))
    x_t = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    expected = ExactScoreModel(one, sde).score(x_t, 0.4) + ExactScoreModel(other, sde).score(x_t, 0.4)
    torch.testing.assert_close(product.score(x_t, 0.4), expected, rtol=1e-9, atol=1e-9)


def test_gradients_do_not_depend_on_the_batch(device):
    model = labelled(VPSDE(), device)
    guided = GradientGuidance(model, classifier_log_prob(model.log_posterior), 2.0, interval=(0.01, 20.0))
    labels = torch.tensor([0, 1, 2, 1, 0], device=device)
    whole, parts = (sample(guided, Heun(), 5, num_steps=6, cond=labels, batch_size=size) for size in (5, 2))
    torch.testing.assert_close(whole.x, parts.x, rtol=1e-10, atol=1e-10)
    assert whole.nfe == 11


def test_the_likelihood_of_the_flow_that_classifiers_guide(device):
    """At gamma = 1 it is the conditional density."""
    model = labelled(VPSDE(), device)
    labels = torch.tensor([0, 1, 2], device=device)
    x = torch.cat([model.targets[y].sample(1, torch.Generator(device).manual_seed(y)) for y in range(3)])
    guided = GradientGuidance(model, classifier_log_prob(model.log_posterior))
    found = log_prob(guided, x, labels, num_evaluations=96).log_prob
    expected = log_prob(model, x, labels, num_evaluations=96).log_prob
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_mistakes_are_named(device):
    model = labelled(VPSDE(), device)
    x_t, level, labels = states(model.sde, device)

    def ask(function, **options):
        return GradientGuidance(model, function, **options).denoise_at(x_t, level, labels)

    constant = torch.ones(4, dtype=torch.float64, device=device)
    for function, message in (
        (lambda x, level, cond: constant, "function: does not depend on x"),
        (lambda x, level, cond: constant.clone().requires_grad_(), "function: does not depend on x"),
        (lambda x, level, cond: x.sum(), r"function: returns shape \(\) for a batch of 4"),
        (lambda x, level, cond: (0 * x).sum(1).sqrt() / 0, "function: its gradient is NaN"),
    ):
        with pytest.raises(UsageError, match=message):
            ask(function)
    with pytest.raises(UsageError, match="of='eps'"):
        ask(lambda x, level, cond: x.sum(1), of="eps")
    with pytest.raises(UsageError, match="scale=-2"):
        GradientGuidance(model, lambda x, level, cond: x.sum(1), -2.0)
    with pytest.raises(UsageError, match="a label for each sample"):
        GradientGuidance(model, classifier_log_prob(model.log_posterior)).denoise_at(x_t, level)
    with pytest.raises(UsageError, match="need that of one sample"):
        ConditionedModel(model, labels)
    assert isinstance(level, Level)

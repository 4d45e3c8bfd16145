"""Guidance by a trained classifier: samples are of the class, and a classifier that does not fit is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch

from samplers import DDIM, Heun, sample, sample_particles
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    EDMParametrization,
    MLPClassifier,
    NetworkScoreModel,
    NoisyClassifier,
    Scaling,
    ThresholdedModel,
    UsageError,
)
from tests.guidance.labelled import labelled, trained_classifier

LABELS = torch.arange(900) % 3


def agreement(model, exact, cond=LABELS):
    """The share of samples that the exact posterior gives the class that was asked for."""
    x, _ = sample(model, Heun(), len(LABELS), num_steps=12, cond=cond, seed=3)
    clean = exact.sde.level(torch.tensor(exact.sde.t_min))
    return (exact.log_posterior(x.to(exact.dtype), clean).argmax(1) == LABELS).double().mean().item()


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=["its own SDE", "another SDE"])
def test_samples_are_of_the_class_that_is_asked_for(sde):
    """Measured: 0.33 without, 0.92, 0.99 and 1.00 with scales 1, 2 and 4; 0.95 with the exact conditional score."""
    exact = labelled(sde).to(dtype=torch.float32)
    guided = [agreement(ClassifierGuidance(exact, trained_classifier(), scale), exact) for scale in (1.0, 2.0, 4.0)]
    assert agreement(exact, exact, None) < 0.4
    assert guided[0] > 0.88
    assert guided[0] < guided[1]
    assert guided[2] > 0.99


def test_with_a_scale_of_one_it_is_close_to_the_conditional_model():
    exact = labelled(VPSDE()).to(dtype=torch.float32)
    guided = ClassifierGuidance(exact, trained_classifier())
    for noise_level in (0.5, 2.0):
        level = exact.sde.at_noise_level(torch.tensor(noise_level))
        generator = torch.Generator().manual_seed(0)
        x_0 = torch.cat([exact.targets[k].sample(300, generator) for k in range(3)])
        labels = torch.arange(3).repeat_interleave(300)
        x_t = level.alpha * x_0 + level.sigma * torch.randn(x_0.shape, generator=generator)
        truth = exact.denoise_at(x_t, level, labels)
        change = (truth - exact.denoise_at(x_t, level)).square().mean()
        assert (guided.denoise_at(x_t, level, labels) - truth).square().mean() < 0.1 * change


def test_outside_its_interval_the_classifier_is_not_asked():
    classifier = trained_classifier()
    exact = labelled(VPSDE()).to(dtype=torch.float32)
    guided = ClassifierGuidance(exact, classifier, 3.0, interval=(0.5, 2.0))
    calls = []
    hook = classifier.network.register_forward_hook(lambda *_: calls.append(1))
    x_t = torch.randn(900, 2)
    for noise_level, asked in ((0.4, 0), (1.0, 1), (3.0, 1)):
        level = exact.sde.at_noise_level(torch.tensor(noise_level))
        guided.denoise_at(x_t, level, LABELS)
        assert len(calls) == asked, noise_level
    hook.remove()


def test_a_conditional_model_gets_the_condition_too():
    exact = labelled(VPSDE()).to(dtype=torch.float32)
    both = ClassifierGuidance(ClassifierFreeGuidance(exact, 1.0), trained_classifier(), 1.0, model_cond=True)
    alone = agreement(exact, exact)
    assert agreement(both, exact) > alone + 0.02  # measured: 0.99 against 0.95


def test_the_number_of_evaluations_is_that_of_the_score_network():
    exact = labelled(VPSDE()).to(dtype=torch.float32)
    guided = ClassifierGuidance(exact, trained_classifier())
    assert sample(guided, DDIM(), 3, num_steps=5, cond=LABELS[:3]).nfe == 5


def test_particles_are_weighed_by_the_classifier():
    """In each class the mean of the particles is that of p(x) p(y | x), which is known."""
    exact = labelled(VPSDE()).to(dtype=torch.float32)
    guided = ClassifierGuidance(exact, trained_classifier(), 1.0)
    for label in range(3):
        x = sample_particles(guided, 1, 2000, num_steps=60, cond=torch.tensor([label]), seed=label).x[0]
        truth = exact.targets[label].sample(20_000, torch.Generator().manual_seed(0))
        assert ((x.mean(0) - truth.mean(0)).abs() / truth.std(0)).max() < 0.2, label


def network_model(num_classes=0, codec=None, sde=None):
    codec = Scaling() if codec is None else codec
    return NetworkScoreModel(MLP(2, 8, 1, num_classes), sde or VPSDE(), EDMParametrization(), (2,), codec)


def classifier_of(sde=None, num_classes=3, codec=None, dim=2):
    codec = Scaling() if codec is None else codec
    network = MLPClassifier(dim, num_classes, 8, 1)
    return NoisyClassifier(network, sde or VPSDE(), (dim,), num_classes, codec=codec)


def test_noise_levels_are_compared_where_there_is_guidance():
    narrow = classifier_of(VESDE(sigma_min=0.1, sigma_max=10.0))
    for low, high, interval, accepted in (
        (0.1, 10.0, None, True),
        (0.2, 9.0, None, True),
        (0.05, 9.0, None, False),
        (0.05, 9.0, (0.3, 50.0), True),
        (0.05, 20.0, (0.3, 50.0), False),
    ):
        model = network_model(sde=VESDE(sigma_min=low, sigma_max=high))
        with contextlib.nullcontext() if accepted else pytest.raises(UsageError, match="give an interval inside them"):
            assert ClassifierGuidance(model, narrow, interval=interval).sde == model.sde
    assert ClassifierGuidance(network_model(), narrow, interval=(0.1, 10.0)).classifier is narrow


def test_wrapped_models_are_looked_into():
    ends = torch.full((2,), -1.0), torch.full((2,), 1.0)
    model = ThresholdedModel(network_model(codec=Scaling(1.0, 2.0)), *ends)
    ClassifierGuidance(model, classifier_of(codec=Scaling(1.0, 2.0 * (1 + 1e-12))))
    with pytest.raises(UsageError, match=r"classifier: trained in the units of Scaling\(center=1\.5"):
        ClassifierGuidance(model, classifier_of(codec=Scaling(1.5, 2.0)))


NARROW = VESDE(sigma_min=0.1, sigma_max=10.0)
REFUSED = {
    "shape": (lambda: ClassifierGuidance(network_model(), classifier_of(dim=3)), r"of samples of shape \(3,\); need"),
    "classes": (
        lambda: ClassifierGuidance(network_model(5), classifier_of(num_classes=4), model_cond=True),
        r"classifier: tells 4 classes apart; need the 5 of the model",
    ),
    "scaling": (
        lambda: ClassifierGuidance(network_model(), classifier_of(codec=Scaling(0.0, 3.0))),
        r"trained in the units of Scaling\(center=0\.0, scale=3\.0\)",
    ),
    "too much noise": (
        lambda: ClassifierGuidance(network_model(sde=VESDE(sigma_min=0.1)), classifier_of(NARROW)),
        r"noise levels from 0\.1 to 10 .*guide from 0\.1 to 50; .*interval=\(0\.1, 10\)",
    ),
    "too little noise": (
        lambda: ClassifierGuidance(network_model(), classifier_of(NARROW), interval=(0.02, 5.0)),
        r"noise levels from 0\.1 to 10 .*guide from 0\.02 to 5",
    ),
    "scale": (lambda: ClassifierGuidance(network_model(), classifier_of(), -1.0), r"scale=-1\.0"),
    "interval": (
        lambda: ClassifierGuidance(network_model(), classifier_of(), interval=(500.0, 600.0)),
        r"interval=\(500, 600\): outside the noise levels",
    ),
    "no label": (
        lambda: sample(ClassifierGuidance(network_model(), classifier_of()), Heun(), 2, num_steps=3),
        r"cond: no condition; a classifier needs labels 0\.\.2",
    ),
    "label": (
        lambda: sample(
            ClassifierGuidance(network_model(), classifier_of()), Heun(), 2, num_steps=3, cond=torch.tensor([1, 3])
        ),
        r"cond: labels from 1 to 3; a classifier needs labels 0\.\.2",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()

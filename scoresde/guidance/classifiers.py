"""Guidance by a classifier of noisy samples (Dhariwal and Nichol 2021)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from scoresde.codec import Codec, same_scaling
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.guidance.gradients import GradientGuidance, classifier_log_prob
from scoresde.guidance.weighed import Weighed, WeighedModel
from scoresde.guidance.weights import Weight
from scoresde.models.base import NetworkModel
from scoresde.models.classifier import NoisyClassifier
from scoresde.networks.embedding import LabelledNetwork
from scoresde.score_model import ScoreModel, WrappedModel
from scoresde.sde import Level

ROUNDING = 1e-3  # relative difference of noise levels that counts as none


@final
class ClassifierGuidance(WeighedModel):
    """A model tilted by p(y | x_t)^gamma at every level, y the condition: D + gamma sigma^2/alpha grad log p(y | x_t).

    With gamma = 1 a perfect classifier makes the conditional model of an unconditional one. A larger gamma favours
    samples of which the classifier is sure. The network is evaluated once, and the classifier forwards and backwards.

    Args:
        model: the score model; one without classes, unless `model_cond`.
        classifier: trained on the same data, under the same SDE or another one, on the model's device.
        scale: gamma: a number, or a function of the noise level; 0 is off.
        interval: noise levels (low, high) with guidance; elsewhere gamma = 0.
        model_cond: whether the model takes the condition too.

    Raises:
        UsageError: for a classifier of other samples, scaling, classes or noise levels than the model's.

    Example:
        guided = ClassifierGuidance(load_model(PATH), load_classifier(OTHER), 2.0)
        x, nfe = sample(guided, Heun(), 100, cond=torch.arange(100) % 10)
    """

    def __init__(
        self,
        model: ScoreModel,
        classifier: NoisyClassifier,
        scale: Weight = 1.0,
        *,
        interval: tuple[float, float] | None = None,
        model_cond: bool = False,
    ) -> None:
        _check_same_data(model, classifier)
        log_prob = classifier_log_prob(classifier.under(model.sde))
        super().__init__(model)
        self.tilted = GradientGuidance(model, log_prob, scale, interval=interval, model_cond=model_cond)
        _check_noise_levels(model, classifier, interval)
        self.classifier = classifier

    def check_cond(self, cond: Condition) -> None:
        self.classifier.check_cond(cond)
        self.tilted.check_cond(cond)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        return self.tilted.denoise_at(x_t, level, cond)

    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The weights of the target p(x_t) p(y | x_t)^gamma."""
        return self.tilted.weigh(x_t, level, cond)


def _check_same_data(model: ScoreModel, classifier: NoisyClassifier) -> None:
    """Raises `UsageError` for a classifier of other samples, in other units or of other classes, or elsewhere."""
    shape = classifier.shape
    require(shape == model.shape, f"classifier: of samples of shape {shape}; need {model.shape}, those of the model")
    require(
        classifier.device == model.device,
        f"classifier: on {classifier.device}; move it to {model.device}, the model's device",
    )
    inner = model
    while isinstance(inner, WrappedModel):
        inner = inner.model
    if not isinstance(inner, NetworkModel):
        return
    require(
        _same_units(inner.codec, classifier.codec),
        f"classifier: trained in the units of {classifier.codec}; the model's are those of {inner.codec}; train it on "
        "the same data",
    )
    network = inner.contract()
    classes = network.num_classes if isinstance(network, LabelledNetwork) else 0
    require(
        classes in (0, classifier.num_classes),
        f"classifier: tells {classifier.num_classes} classes apart; need the {classes} of the model",
    )


def _same_units(one: Codec, other: Codec) -> bool:
    """Whether two codecs are the same, one with weights also being a copy of the other."""
    if not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
        return same_scaling(one, other)
    states = one.state_dict(), other.state_dict()
    same_names = type(one) is type(other) and states[0].keys() == states[1].keys()
    return same_names and all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def _check_noise_levels(model: ScoreModel, classifier: NoisyClassifier, interval: tuple[float, float] | None) -> None:
    """Raises `UsageError` if the model is guided at noise levels at which the classifier was not trained."""
    largest, smallest = model.sde.span().noise_level.tolist()
    low, high = (smallest, largest) if interval is None else (max(smallest, interval[0]), min(largest, interval[1]))
    least, most = classifier.noise_range()
    require(
        least <= low * (1 + ROUNDING) and high <= most * (1 + ROUNDING),
        f"classifier: trained at noise levels from {least:.4g} to {most:.4g} ({type(classifier.sde).__name__}), and is "
        f"to guide from {low:.4g} to {high:.4g}; give an interval inside them, such as interval=({least:.4g}, "
        f"{min(most, largest):.4g})",
    )

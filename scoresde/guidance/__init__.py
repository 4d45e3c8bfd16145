"""Guidance: models made from models, for every sampler."""

from scoresde.guidance.classifiers import ClassifierGuidance
from scoresde.guidance.gradients import GradientGuidance, classifier_log_prob
from scoresde.guidance.pairs import Autoguidance, ClassifierFreeGuidance, GuidedModel
from scoresde.guidance.products import ConditionedModel, ProductModel
from scoresde.guidance.rules import APG, Linear, Rescale, Rule
from scoresde.guidance.weights import Weight, cfg_plus_plus, mean_form

__all__ = [
    "APG",
    "Autoguidance",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ConditionedModel",
    "GradientGuidance",
    "GuidedModel",
    "Linear",
    "ProductModel",
    "Rescale",
    "Rule",
    "Weight",
    "cfg_plus_plus",
    "classifier_log_prob",
    "mean_form",
]

"""Kinds of `ScoreModel`: around a network or a function, around another model, and of a known distribution.

And `NoisyClassifier`, the one model that is none.
"""

from scoresde.models.classifier import NoisyClassifier
from scoresde.models.exact import ExactLabelledModel, ExactScoreModel
from scoresde.models.network import CallableScoreModel, NetworkScoreModel
from scoresde.models.thresholded import ThresholdedModel

__all__ = [
    "CallableScoreModel",
    "ExactLabelledModel",
    "ExactScoreModel",
    "NetworkScoreModel",
    "NoisyClassifier",
    "ThresholdedModel",
]

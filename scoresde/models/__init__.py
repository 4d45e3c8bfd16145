"""Kinds of `ScoreModel`: around a network or a function, around another model, and of a known distribution.

And `NoisyClassifier` and `ContrastiveTextModel`, which are none.
"""

from scoresde.models.classifier import NoisyClassifier
from scoresde.models.exact import ExactLabelledModel, ExactScoreModel
from scoresde.models.network import CallableScoreModel, NetworkScoreModel
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.models.thresholded import ThresholdedModel

__all__ = [
    "CallableScoreModel",
    "ContrastiveTextModel",
    "ExactLabelledModel",
    "ExactScoreModel",
    "NetworkScoreModel",
    "NoisyClassifier",
    "ThresholdedModel",
]

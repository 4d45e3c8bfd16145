"""Kinds of `ScoreModel`: around a network or a function, around another model, and of a known distribution."""

from scoresde.models.exact import ExactLabelledModel, ExactScoreModel
from scoresde.models.network import CallableScoreModel, NetworkScoreModel
from scoresde.models.thresholded import ThresholdedModel

__all__ = ["CallableScoreModel", "ExactLabelledModel", "ExactScoreModel", "NetworkScoreModel", "ThresholdedModel"]

"""Features that distances between sets of samples compare."""

from scoresde.metrics.features.base import CallableFeatures, FeatureNetwork, Values
from scoresde.metrics.features.dinov2 import DINOv2Features
from scoresde.metrics.features.efficientnet import EfficientNetFeatures
from scoresde.metrics.features.images import Levels
from scoresde.metrics.features.inception import InceptionFeatures
from scoresde.metrics.features.own_classifier import ClassifierFeatures
from scoresde.metrics.features.sets import FeatureSet, extract

__all__ = [
    "CallableFeatures",
    "ClassifierFeatures",
    "DINOv2Features",
    "EfficientNetFeatures",
    "FeatureNetwork",
    "FeatureSet",
    "InceptionFeatures",
    "Levels",
    "Values",
    "extract",
]

"""Numbers that say how good a model and its samples are."""

from scoresde.metrics.bits import (
    DEQUANTIZATIONS,
    Dequantization,
    TruncatedNormalDequantization,
    UniformDequantization,
    bits_per_dim,
    dequantize,
)
from scoresde.metrics.classifier import Classifier, Judgement, judge, train_classifier
from scoresde.metrics.frechet import frechet_distance
from scoresde.metrics.sliced import sliced_wasserstein

__all__ = [
    "DEQUANTIZATIONS",
    "Classifier",
    "Dequantization",
    "Judgement",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "bits_per_dim",
    "dequantize",
    "frechet_distance",
    "judge",
    "sliced_wasserstein",
    "train_classifier",
]

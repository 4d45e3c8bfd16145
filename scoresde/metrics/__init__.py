"""Measures of the quality of a model and its samples."""

from scoresde.metrics.bits import (
    DEQUANTIZATIONS,
    Dequantization,
    TruncatedNormalDequantization,
    UniformDequantization,
    bits_per_dim,
    dequantize,
)
from scoresde.metrics.classifier import Classifier, Judgement, judge, train_classifier
from scoresde.metrics.compare import compare, copying
from scoresde.metrics.features import FeatureNetwork, FeatureSet, extract
from scoresde.metrics.frechet import frechet_distance
from scoresde.metrics.kernel import kernel_distance
from scoresde.metrics.noise_levels import LevelScores, score_by_noise_level
from scoresde.metrics.powered import PoweredTarget
from scoresde.metrics.resampling import Estimate
from scoresde.metrics.sliced import sliced_wasserstein
from scoresde.metrics.variational_dequantization import VariationalDequantization, train_dequantization

__all__ = [
    "DEQUANTIZATIONS",
    "Classifier",
    "Dequantization",
    "Estimate",
    "FeatureNetwork",
    "FeatureSet",
    "Judgement",
    "LevelScores",
    "PoweredTarget",
    "TruncatedNormalDequantization",
    "UniformDequantization",
    "VariationalDequantization",
    "bits_per_dim",
    "compare",
    "copying",
    "dequantize",
    "extract",
    "frechet_distance",
    "judge",
    "kernel_distance",
    "score_by_noise_level",
    "sliced_wasserstein",
    "train_classifier",
    "train_dequantization",
]

"""Features of a small classifier that is trained on the model's own data (`scoresde.metrics.classifier`)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scoresde.codec import Codec
from scoresde.metrics.classifier import FEATURES, Classifier
from scoresde.metrics.features.base import FeatureNetwork, checksum


@final
class ClassifierFeatures(FeatureNetwork):
    """The 64 last hidden values of a classifier.

    Args:
        classifier: the classifier.
        codec: the map from raw samples to the values that it was trained on.
    """

    def __init__(self, classifier: Classifier, codec: Codec) -> None:
        self._classifier = classifier
        self._codec = codec
        self.num_features = FEATURES
        self.tag = f"classifier-{checksum(classifier.state_dict())}/{FEATURES}/hidden"

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        return self._classifier.features(self._codec.encode(samples, torch.float32))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return self._classifier.logits(features)

"""Features of EfficientNet-lite0 (`scoresde.networks.efficientnet`)."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
from torch import Tensor

from scoresde.metrics.features.base import FeatureNetwork
from scoresde.metrics.features.images import BYTES, Levels, on_host, resized
from scoresde.networks.efficientnet import CHECKSUM, FEATURES, installed_file, load

SIZE = 224


@final
class EfficientNetFeatures(FeatureNetwork):
    """The 1,280 features of the last pooling.

    Args:
        levels: the range of the raw images.
        device: where to compute.
        file: the published weights; by default those of the installed package.

    Raises:
        UsageError: if they are not installed, or are other weights.
    """

    def __init__(self, levels: Levels = BYTES, device: torch.device | str = "cpu", file: Path | None = None) -> None:
        self._levels = levels
        self._device = torch.device(device)
        self._network = load(file or installed_file()).to(self._device)
        self.num_features = FEATURES
        self.tag = f"efficientnet-lite0-{CHECKSUM}/{SIZE}-bilinear-antialias/(x-127)/128/pool{levels.tag}"

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        images = resized(self._levels.colour(samples).to(self._device), SIZE)
        return on_host(self._network.features(images.sub_(127).div_(128).contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return on_host(self._network._fc(features.to(self._device)))

"""Features of the Inception network of published distances, through torch-fidelity."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from scoresde.errors import UsageError, require
from scoresde.metrics.features.base import FeatureNetwork
from scoresde.metrics.features.images import BYTES, Levels, on_host

PUBLISHED = "6726825d"  # the first digits of the SHA-256 of weights-inception-2015-12-05-6726825d.pth
SIZE = 299


@final
class InceptionFeatures(FeatureNetwork):
    """The 2,048 features of the last pooling, with torch-fidelity's copy of TensorFlow's resizing.

    Args:
        levels: the range of the raw images.
        device: where to compute.
        file: `weights-inception-2015-12-05-6726825d.pth`, as torch-fidelity and pytorch-fid publish it; nothing is
            downloaded.

    Raises:
        UsageError: if torch-fidelity is not installed, or the weights are others.
    """

    def __init__(self, file: Path, levels: Levels = BYTES, device: torch.device | str = "cpu") -> None:
        found = hashlib.sha256(file.read_bytes()).hexdigest()[: len(PUBLISHED)]
        require(
            found == PUBLISHED,
            f"features={str(file)!r}: has the checksum {found}, and the published weights have {PUBLISHED}; take "
            "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release",
        )
        self._levels = levels
        self._device = torch.device(device)
        self._network = _extractor(file).to(self._device)
        self.num_features = 2048
        self.tag = f"inception-2015-12-05-{PUBLISHED}/{SIZE}-tf1-bilinear/(x-128)/128/pool{levels.tag}"

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        images = self._levels.colour(samples).to(torch.uint8).to(self._device)
        (features,) = self._network(images)
        return on_host(features)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        weight = self._network.fc.weight  # without its bias, as published scores have it
        return on_host(features.to(weight) @ weight.mT)


def _extractor(file: Path) -> Any:
    """torch-fidelity's network with some weights, which it reads as tensors alone."""
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UsageError(f"features='inception': needs torch-fidelity ({error}); pip install torch-fidelity") from error
    try:
        torch.load(file, map_location="cpu", weights_only=True)  # refuses a file that would run code
    except Exception as error:
        raise UsageError(f"features={str(file)!r}: cannot be read as weights") from error
    network = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    return network.eval().requires_grad_(False)

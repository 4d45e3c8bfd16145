"""Features of DINOv2 (Oquab et al. 2023), through transformers, from a folder that the user has."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import UsageError
from scoresde.metrics.features.base import FeatureNetwork, checksum
from scoresde.metrics.features.images import BYTES, Levels, on_host

SIZE = 224
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's channels, and their deviations
DEVIATION = (0.229, 0.224, 0.225)


@final
class DINOv2Features(FeatureNetwork):
    """The class token after the last normalisation: 1,024 features of ViT-L/14, which published distances take.

    Args:
        folder: of the model as transformers saves it, with its weights as safetensors; nothing is downloaded.
        levels: the range of the raw images.
        device: where to compute.

    Raises:
        UsageError: if transformers is not installed, or the folder holds no such model.
    """

    def __init__(self, folder: Path, levels: Levels = BYTES, device: torch.device | str = "cpu") -> None:
        try:
            model = importlib.import_module("transformers").Dinov2Model
        except (ImportError, AttributeError) as error:
            raise UsageError("features='dinov2': needs transformers; pip install transformers") from error
        try:
            network = model.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"features={str(folder)!r}: cannot be read as a DINOv2 model ({reason})") from error
        self._levels = levels
        self._device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self._device)
        self.num_features = network.config.hidden_size
        self.tag = (
            f"dinov2-{self.num_features}-{checksum(network.state_dict())}/{SIZE}-bicubic-antialias/imagenet/"
            f"class token{levels.tag}"
        )

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        images = self._levels.colour(samples).to(self._device)
        images = F.interpolate(images, (SIZE, SIZE), mode="bicubic", align_corners=False, antialias=True)
        mean, deviation = (images.new_tensor(part)[:, None, None] for part in (MEAN, DEVIATION))
        return on_host(self._network((images.clamp(0, 255) / 255 - mean) / deviation).pooler_output)

"""Images as networks that were trained on photographs take them: three channels of 256 levels, of one size."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import require


@final
class Levels(NamedTuple):
    """The range of raw images, whose ends become the levels 0 and 255."""

    low: float = 0.0
    high: float = 255.0

    @property
    def tag(self) -> str:
        """The range in the name of features; nothing for bytes."""
        return "" if self == Levels() else f"/levels {self.low:g} to {self.high:g}"

    def colour(self, images: Tensor) -> Tensor:
        """Whole levels 0 to 255 as float32, `(B, 3, H, W)`, of raw images `(B, 1 or 3, H, W)`.

        Levels are rounded to the nearest: to cut off what follows the point would darken images by half a level. Grey
        images are repeated.

        Raises:
            UsageError: for samples that are not grey or colour images.
        """
        require(
            images.ndim == 4 and images.shape[1] in (1, 3),
            f"samples of shape {tuple(images.shape[1:])}: need images (1 or 3, height, width)",
        )
        scaled = (images.double() - self.low) * (255.0 / (self.high - self.low))
        return scaled.round().clamp(0, 255).float().expand(-1, 3, -1, -1)


BYTES = Levels()


def resized(images: Tensor, size: int) -> Tensor:
    """Square images by bilinear interpolation, with a filter as wide as the pixels of the coarser image."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def on_host(features: Tensor) -> Tensor:
    """Features as they are kept, float32."""
    return features.detach().to("cpu", torch.float32)

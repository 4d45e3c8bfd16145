"""Quantisation of cosine coefficients, as in JPEG."""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import Operator

SIDE = 8
LUMINANCE = (  # ITU T.81, table K.1
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@final
class JPEG(Operator):
    """Images whose cosine coefficients, in blocks of 8 x 8, are rounded to multiples of JPEG's luminance table.

    Every channel is treated as luminance. The derivative is that of no rounding at all ("straight through").

    Args:
        shape: of a sample, `(C, H, W)`.
        quality: 1 to 100, as libjpeg scales the table.
        low, high: values that stand for black and white, 0 and 255.
    """

    def __init__(self, shape: tuple[int, ...], quality: int = 10, low: float = -1.0, high: float = 1.0) -> None:
        require(len(shape) == 3, f"shape={shape}: need images, (C, H, W)")
        require(1 <= quality <= 100, f"quality={quality}: need 1 to 100")
        require(low < high, f"low={low}, high={high}: need low < high")
        self.shape = tuple(shape)
        self.measured_shape = self.shape
        self.quality = quality
        self.low = low
        self.high = high
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        table = torch.tensor(LUMINANCE, dtype=torch.float64)
        self.steps = ((table * percent + 50) / 100).floor().clamp(1, 255)
        k = torch.arange(SIDE, dtype=torch.float64)
        self.cosines = torch.cos(math.pi / SIDE * (k + 0.5) * k[:, None]) * math.sqrt(2 / SIDE)
        self.cosines[0] /= math.sqrt(2)

    def __call__(self, x: Tensor) -> Tensor:
        grey = (x - self.low) * (255 / (self.high - self.low)) - 128
        height, width = x.shape[2:]
        grey = F.pad(grey, (0, -width % SIDE, 0, -height % SIDE), mode="replicate")
        cosines = self.cosines.to(x)
        blocks = grey.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)
        steps = self.steps.to(x)
        found = cosines @ blocks @ cosines.mT / steps
        rounded = found + (found.round() - found).detach()
        back = cosines.mT @ (rounded * steps) @ cosines
        whole = back.permute(0, 1, 2, 4, 3, 5).reshape(grey.shape)[:, :, :height, :width]
        return (whole + 128) * ((self.high - self.low) / 255) + self.low

"""What the places of an image attended to: a map for each word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.images import Strip, image_strips
from scoresde.plots.style import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8  # words in a row, at most


def attention(image: Tensor, maps: Tensor, words: Sequence[str], title: str) -> Figure:
    """An image, and for each word the map of attention: alone, and over the image.

    Each map goes from dark, its smallest value, to light, its largest one; its mean is written below.

    Args:
        image: `(C, H, W)` with values in [0, 1].
        maps: `(L, h, w)`, for each place the share of the attention that a word has.
        words: the L words.
        title: of the image.
    """
    require(
        maps.ndim == 3 and len(words) == len(maps) > 0,
        f"maps of shape {tuple(maps.shape)}, {len(words)} words: need (L, h, w), and a word for each",
    )
    size = image.shape[1:]
    image = image.detach().cpu().float().clamp(0, 1).expand(3, *size)
    maps = maps.detach().cpu().float()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = ((maps - low) / (high - low).clamp(min=1e-12))[:, None]
    alone = _coloured(F.interpolate(scaled, size=size, mode="nearest"))
    over = (image + _coloured(F.interpolate(scaled, size=size, mode="bilinear"))) / 2
    strips = [Strip(literal(title), image[None, None])]
    columns = math.ceil(len(words) / math.ceil(len(words) / COLUMNS))
    for start in range(0, len(words), columns):
        part = slice(start, start + columns)
        shares = ", ".join(f"{share:.3f}" for share in maps[part].mean((1, 2)).tolist())
        names = [literal(word) for word in words[part]]
        both = torch.stack([alone[part], over[part]])
        both = F.pad(both, (0, 0) * 3 + (0, columns - both.shape[1]), value=1.0)  # white
        heading = "attention of the places to each word" if start == 0 else ""
        strips.append(Strip(heading, both, ("map", "over the image"), names, f"mean shares: {shares}"))
    return image_strips(strips, 9.0)


def _coloured(values: Tensor) -> Tensor:
    """Values `(L, 1, H, W)` in [0, 1] as colours `(L, 3, H, W)`."""
    from matplotlib import colormaps

    colours: np.ndarray = colormaps["viridis"](values[:, 0].numpy())
    return torch.from_numpy(colours[..., :3]).float().movedim(3, 1)

"""Images: grids of pixels, and strips with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase
    from PIL.Image import Image

GREY = 0.5  # for gaps and NaN


class Strip(NamedTuple):
    """Images in rows and columns under a title.

    Attributes:
        title: title of the strip.
        images: `(rows, columns, C, H, W)`, values in [0, 1].
        rows, columns: labels beside each row and above each column; none if empty.
        note: a text below the columns.
    """

    title: str
    images: Tensor
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    note: str = ""


def image_grid(images: Tensor, columns: int, gap: int = 1, enlarge: int | None = None) -> Image:
    """Images `(N, C, H, W)` with values in [0, 1] as one picture, row by row, with a grey gap between them.

    Small images are enlarged without smoothing, by six for 8x8, so that each pixel can be seen.

    Args:
        images: images of one or three channels; values outside [0, 1] are clipped.
        columns: number of images in a row.
        gap: pixels between two images, before enlarging.
        enlarge: factor of enlargement; chosen from the size if None.
    """
    from PIL import Image

    levels = levels_of(images, columns, gap)
    enlarge = enlarge or max(1, round(48 / max(images.shape[2:])))
    return Image.fromarray(levels.repeat(enlarge, 0).repeat(enlarge, 1))


def image_strips(strips: Sequence[Strip], width: float = 7.5) -> Figure:
    """Strips one below the other; the widest is as wide as the figure, `width` inches."""
    figure = new_figure(width, height_of_strips(strips, width))
    draw_strips(figure, strips, width)
    return figure


def height_of_strips(strips: Sequence[Strip], width: float) -> float:
    """The height of strips in inches, with what stands between them."""
    between = sum(0.35 + 0.2 * bool(strip.columns) + 0.25 * bool(strip.note) for strip in strips)
    return sum(_heights(_arrays(strips), width)) + between


def _arrays(strips: Sequence[Strip]) -> list[np.ndarray]:
    """The pixels of each strip."""
    require(len(strips) > 0, "strips: there are none; give at least one")
    for strip in strips:
        require(
            strip.images.ndim == 5 and strip.images.numel() > 0,
            f"images of shape {tuple(strip.images.shape)}: need (rows, columns, 1 or 3, H, W)",
        )
    return [levels_of(strip.images.flatten(0, 1), strip.images.shape[1], 1) for strip in strips]


def _heights(arrays: Sequence[np.ndarray], width: float) -> list[float]:
    """The height of the pixels of each strip, in inches.

    A strip of few columns is drawn narrower, so that its images are no larger than those of the others.
    """
    widest = max(array.shape[1] for array in arrays)
    return [(width - 0.8) * array.shape[0] / widest for array in arrays]


def draw_strips(figure: FigureBase, strips: Sequence[Strip], width: float) -> None:
    """Draws strips one below the other on a figure, or a part of one, of a width in inches."""
    arrays = _arrays(strips)
    ratios = {"height_ratios": _heights(arrays, width)}
    parts = figure.subplots(len(strips), 1, squeeze=False, gridspec_kw=ratios)[:, 0]
    for axes, strip, array in zip(parts, strips, arrays, strict=True):
        rows, columns = strip.images.shape[:2]
        cell_height = (array.shape[0] - 1) / rows
        cell_width = (array.shape[1] - 1) / columns
        axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(strip.title, fontsize=10, loc="left", pad=16 if strip.columns else 6)
        axes.set_yticks([(k + 0.5) * cell_height for k in range(len(strip.rows))], strip.rows, fontsize=9)
        axes.set_xticks([(k + 0.5) * cell_width for k in range(len(strip.columns))], strip.columns, fontsize=8)
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xlabel(strip.note, fontsize=9)
        axes.spines[:].set_visible(False)
        axes.set_anchor("W")


def levels_of(images: Tensor, columns: int, gap: int) -> np.ndarray:
    """The pixels 0..255 of a grid of images `(N, C, H, W)`: `(height, width)`, or `(height, width, 3)`."""
    require(
        images.ndim == 4 and images.shape[1] in (1, 3) and len(images) > 0,
        f"images of shape {tuple(images.shape)}: need (N, 1 or 3, H, W) with N > 0",
    )
    require(columns >= 1, f"columns={columns}: need at least 1")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), GREY)
    for k, image in enumerate(images.detach().cpu().float()):
        top = gap + k // columns * (height + gap)
        left = gap + k % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    levels = (canvas.nan_to_num(GREY).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels[0].numpy() if channels == 1 else levels.permute(1, 2, 0).numpy()

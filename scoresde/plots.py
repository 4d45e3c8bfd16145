"""Arrays in, pictures out; no model and no solver is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def image_grid(images: Tensor, columns: int, gap: int = 1, enlarge: int | None = None) -> Image:
    """Images `(N, C, H, W)` with values in [0, 1] as one picture, row by row, with a grey gap between them.

    Small images are enlarged without smoothing, by six for 8x8, so that each pixel can be seen.

    Args:
        images: one or three channels; values outside [0, 1] are cut.
        columns: images a row.
        gap: pixels between two images, before enlarging.
        enlarge: by how much; chosen from the size if None.
    """
    from PIL import Image

    require(
        images.ndim == 4 and images.shape[1] in (1, 3) and len(images) > 0,
        f"images of shape {tuple(images.shape)}: need (N, 1 or 3, H, W) with N > 0",
    )
    require(columns >= 1, f"columns={columns}: need at least 1")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    enlarge = enlarge or max(1, round(48 / max(height, width)))
    grey = 0.5
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), grey)
    for k, image in enumerate(images.detach().cpu().float()):
        top, left = gap + k // columns * (height + gap), gap + k % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    levels = (canvas.nan_to_num(grey).clamp(0, 1) * 255).round().to(torch.uint8)
    levels = levels.repeat_interleave(enlarge, 1).repeat_interleave(enlarge, 2)
    array = levels[0].numpy() if channels == 1 else levels.permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def scatter(points: Tensor, labels: Tensor | None = None) -> Figure:
    """Points `(N, D)` by their first two coordinates (one coordinate: a histogram), coloured by label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    points = points.detach().cpu()
    groups = [points] if labels is None else [points[labels == k] for k in labels.unique()]
    for k, group in enumerate(groups):
        colour = COLOURS[k % len(COLOURS)]
        if points.shape[1] == 1:
            axes.hist(group[:, 0].numpy(), bins=60, color=colour, alpha=0.6)
        else:
            axes.scatter(group[:, 0].numpy(), group[:, 1].numpy(), s=4, color=colour, alpha=0.5, linewidths=0)
    axes.set_xlabel("$x_1$ (data units)")
    axes.set_ylabel("count" if points.shape[1] == 1 else "$x_2$ (data units)")
    if points.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def score_fields(
    xy: Tensor,
    log_densities: Sequence[Tensor],
    fields: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """Score arrows over the log density: one panel for each row (a model) and each column (a time).

    Arrows show direction and, by their length, the logarithm of the magnitude; within a column all rows share a scale.

    Args:
        xy: `(n, n, 2)` points of a square grid; `xy[i, j]` is (x_j, y_i).
        log_densities: for each column `(n, n)`.
        fields: for each row and column `(n, n, 2)`.
        rows, columns: their titles.
    """
    from matplotlib.figure import Figure

    size = 3.0
    figure = Figure(figsize=(size * len(columns), size * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    x, y = xy[..., 0].numpy(), xy[..., 1].numpy()
    stride = max(1, xy.shape[0] // 20)
    spacing = (x[0, 1] - x[0, 0]) * stride
    for j, log_density in enumerate(log_densities):
        largest = max(field[j].norm(dim=-1).max().item() for field in fields)
        top = log_density.max()
        for i, field in enumerate(fields):
            axes = panels[i, j]
            axes.contourf(x, y, (log_density - top).clamp(min=-12).numpy(), levels=24, cmap="Blues", zorder=0)
            arrow = field[j][stride // 2 :: stride, stride // 2 :: stride]
            length = arrow.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            arrow = arrow / length * torch.log1p(9 * length / largest) / torch.log(torch.tensor(10.0))
            at = xy[stride // 2 :: stride, stride // 2 :: stride]
            axes.quiver(
                at[..., 0].numpy(), at[..., 1].numpy(), arrow[..., 0].numpy(), arrow[..., 1].numpy(),
                angles="xy", scale_units="xy", scale=1 / (1.2 * spacing), width=0.006, color=COLOURS[1],
            )  # fmt: skip
            axes.set_aspect("equal")
            axes.set_xlim(x.min(), x.max())
            axes.set_ylim(y.min(), y.max())
            if i == 0:
                axes.set_title(columns[j], fontsize=10)
            if i == len(fields) - 1:
                axes.set_xlabel("$x_1$ (data units)")
            if j == 0:
                axes.set_ylabel(f"{rows[i]}\n$x_2$ (data units)")
    return figure

"""Arrays in, pictures out; no model and no solver is known here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    points, labels = points.detach().cpu(), None if labels is None else labels.cpu()
    groups = [points] if labels is None else [points[labels == k] for k in labels.unique()]
    for k, group in enumerate(groups):
        colour = COLOURS[k % len(COLOURS)]
        if points.shape[1] == 1:
            axes.hist(group[group.isfinite()].numpy(), bins=60, color=colour, alpha=0.6)
        else:
            axes.scatter(group[:, 0].numpy(), group[:, 1].numpy(), s=4, color=colour, alpha=0.5, linewidths=0)
    axes.set_xlabel("$x_1$ (data units)")
    axes.set_ylabel("count" if points.shape[1] == 1 else "$x_2$ (data units)")
    if points.shape[1] > 1:
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def score_fields(
    grids: Sequence[Tensor],
    log_densities: Sequence[Tensor],
    fields: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """Score arrows over the log density: one panel for each row (a model) and each column (a time).

    An arrow's length grows with the logarithm of the score's magnitude, on one scale for a column.

    Args:
        grids: for each column `(n, n, 2)`, points of a square grid; entry [i, j] is (x_j, y_i).
        log_densities: for each column `(n, n)`.
        fields: for each row and column `(n, n, 2)`.
        rows, columns: their titles.
    """
    from matplotlib.figure import Figure

    size = 2.8
    figure = Figure(figsize=(size * len(columns) + 0.5, size * len(rows) + 0.5), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for j, (xy, log_density) in enumerate(zip(grids, log_densities, strict=True)):
        x, y = xy[..., 0].numpy(), xy[..., 1].numpy()
        stride = max(1, len(xy) // 16)
        inner = slice(stride // 2, None, stride)
        largest = max(field[j].norm(dim=-1).max().item() for field in fields)
        for i, field in enumerate(fields):
            axes = panels[i, j]
            axes.contourf(x, y, (log_density - log_density.max()).clamp(min=-10).numpy(), levels=20, cmap="Blues")
            arrow = field[j][inner, inner]
            length = arrow.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            arrow = arrow / length * torch.log1p(99 * length / largest) / math.log(100)
            axes.quiver(
                *xy[inner, inner].unbind(-1),
                *arrow.unbind(-1),
                angles="xy",
                scale_units="xy",
                scale=1 / (1.1 * stride * (x[0, 1] - x[0, 0])),
                width=0.007,
                color=COLOURS[1],
            )
            axes.set_aspect("equal")
            if i == 0:
                axes.set_title(columns[j], fontsize=10)
            if i == len(fields) - 1:
                axes.set_xlabel("$x_1$ (data units)")
            if j == 0:
                axes.set_ylabel(f"{rows[i]}\n$x_2$ (data units)")
    return figure


def error_curves(
    counts: Sequence[int], errors: Mapping[str, Sequence[float]], floor: float, labels: tuple[str, str]
) -> Figure:
    """Errors over numbers of evaluations, a curve each, on logarithmic axes; below `floor` nothing is resolved.

    Args:
        counts: the numbers of evaluations.
        errors: for each curve its errors, NaN where there is none.
        floor: the error of the truth itself.
        labels: of the two axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for k, (name, values) in enumerate(errors.items()):
        marker = "os^Dvp*X"[k % 8]
        axes.plot(counts, values, marker=marker, color=COLOURS[k % len(COLOURS)], label=name, linewidth=1.5)
    axes.axhspan(floor / 10, floor, color="0.9", label="not resolved")
    axes.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.minorticks_off()
    lowest = min((v for values in errors.values() for v in values if v > 0), default=floor)
    axes.set_ylim(bottom=min(lowest, floor) / 1.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure

"""Functions over the plane or over a line: scores and log densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.style import COLOURS, DASHES, MISSING, new_figure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH = 10  # nats below the largest log density at which the shading ends
SEEN = 6  # nats below it at which differences end


def score_fields(
    grids: Sequence[Tensor],
    log_densities: Sequence[Tensor],
    fields: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    notes: Sequence[Sequence[str]] = (),
    largest: Sequence[float] = (),
    axes_names: tuple[str, str] = ("$x_1$ (data units)", "$x_2$ (data units)"),
) -> Figure:
    """Score arrows over the log density: one panel for each row (a model) and each column (a time).

    An arrow's length grows with the logarithm of the score's magnitude, on one scale for a column. A score that is not
    finite has no arrow. A log density that is not finite is grey.

    Args:
        grids: for each column the points of a square grid, `(n, n, 2)`; entry [i, j] is (x_j, y_i).
        log_densities: for each column `(n, n)`.
        fields: for each row and column the scores, `(n, n, 2)`.
        rows, columns: titles of the rows and columns.
        notes: for each row and column a text in the panel.
        largest: for each column the magnitude of the longest arrow; the largest of its fields if not given.
        axes_names: labels of the two axes.
    """
    size = 2.45
    figure = new_figure(size * len(columns) + 0.4, (size - 0.25) * len(rows) + 0.8)
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for j, (xy, log_density) in enumerate(zip(grids, log_densities, strict=True)):
        x, y = (part.cpu().numpy() for part in xy.unbind(-1))
        log_p = _shaded("log density", log_density)
        arrows = [torch.from_numpy(numbers(f"score, {rows[i]}", field[j])) for i, field in enumerate(fields)]
        stride = max(1, len(xy) // 16)
        inner = slice(stride // 2, None, stride)
        top = largest[j] if largest else max(np.nanmax(a.norm(dim=-1).numpy()) for a in arrows)
        for i, field in enumerate(arrows):
            axes = panels[i, j]
            axes.set_facecolor(MISSING)
            axes.contourf(x, y, np.ma.masked_invalid(log_p), levels=np.linspace(-DEPTH, 0, 21), cmap="Blues")
            arrow = field[inner, inner]
            length = arrow.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            arrow = arrow / length * torch.log1p(99 * length / max(top, 1e-12)) / math.log(100)
            axes.quiver(
                *(part.cpu().numpy() for part in xy[inner, inner].unbind(-1)),
                *np.ma.masked_invalid(arrow.numpy()).transpose(2, 0, 1),
                angles="xy",
                scale_units="xy",
                scale=1 / (1.1 * stride * (x[0, 1] - x[0, 0])),
                width=0.007,
                color=COLOURS[1],
            )
            axes.set_aspect("equal")
            axes.tick_params(labelbottom=i == len(fields) - 1)
            _name(axes, i, j, len(fields), rows, columns, axes_names)
            if notes and notes[i][j]:
                _note(axes, notes[i][j])
    return figure


def score_curves(
    x: Sequence[Tensor],
    log_densities: Sequence[Tensor],
    scores: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """Scores on a line, with the density behind them: a panel for each time, a curve for each model.

    Args:
        x: for each panel the points, `(n,)`.
        log_densities: for each panel `(n,)`.
        scores: for each curve and panel `(n,)`.
        rows, columns: names of the curves, titles of the panels.
    """
    figure = new_figure(2.8 * len(columns) + 0.5, 3.2)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for j, axes in enumerate(panels):
        at = x[j].cpu().numpy()
        density = np.exp(_shaded("log density", log_densities[j]))
        ground = axes.twinx()
        ground.fill_between(at, density, color=COLOURS[5], alpha=0.35, linewidth=0)
        ground.set(ylim=(0, 1.5), yticks=[])
        axes.set_zorder(ground.get_zorder() + 1)
        axes.patch.set_visible(False)
        for k, (name, values) in enumerate(zip(rows, scores, strict=True)):
            axes.plot(at, numbers(name, values[j]), color=COLOURS[k], linestyle=DASHES[k % 4], label=name)
        axes.set_title(columns[j], fontsize=10)
        axes.set_xlabel("$x$ (data units)")
    panels[0].set_ylabel("score (1 / data units)")
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def densities(
    grid: Tensor, log_densities: Sequence[Tensor], names: Sequence[str], difference: str = "", tolerance: float = 1.0
) -> Figure:
    """Log densities side by side over a grid, and the first minus the second wherever the second is not negligible.

    Args:
        grid: points of the plane, `(n, n, 2)`, as in `score_fields`, or of a line, `(n, 1)`.
        log_densities: each `(n, n)` or `(n,)`, nats.
        names: titles of the densities.
        difference: title of the difference; none is drawn if it is empty, or if there is one density.
        tolerance: the difference, in nats, at which the colours end.
    """
    require(len(log_densities) > 0, "log_densities: there are none; give at least one")
    values = [numbers(name, log_p) for name, log_p in zip(names, log_densities, strict=True)]
    if grid.shape[-1] == 1:
        return _on_a_line(grid[..., 0].cpu().numpy(), values, names)
    top = np.nanmax(values[-1])
    count = len(values) + bool(difference and len(values) > 1)
    figure = new_figure(3.1 * count + 0.9, 3.4)
    panels = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
    x, y = (part.cpu().numpy() for part in grid.unbind(-1))
    ends = {"levels": np.linspace(top - DEPTH, top, 21), "cmap": "Blues", "extend": "max"}
    for axes, name, log_p in zip(panels, names, values, strict=False):
        shading = axes.contourf(x, y, np.ma.masked_invalid(np.fmax(log_p, top - DEPTH)), **ends)
        axes.set_title(name, fontsize=10)
    ticks = np.arange(math.ceil((top - DEPTH) / 2) * 2, top, 2)
    bar = figure.colorbar(shading, ax=panels[: len(values)], ticks=ticks, shrink=0.85)
    bar.set_label("log density (nats)")
    if count > len(values):
        seen = np.where(values[1] > top - SEEN, values[0] - values[1], np.nan).clip(-tolerance, tolerance)
        levels = np.linspace(-tolerance, tolerance, 22)
        shading = panels[-1].contourf(x, y, np.ma.masked_invalid(seen), levels=levels, cmap="PuOr")
        panels[-1].set_title(difference, fontsize=10)
        bar = figure.colorbar(shading, ax=panels[-1], ticks=[-tolerance, 0, tolerance], shrink=0.85)
        bar.set_label("difference (nats)")
    for axes in panels:
        axes.set_facecolor(MISSING if axes is not panels[-1] or count == len(values) else "0.95")
        axes.set_aspect("equal")
        axes.set_xlabel("$x_1$ (data units)")
    panels[0].set_ylabel("$x_2$ (data units)")
    return figure


def _on_a_line(x: np.ndarray, values: Sequence[np.ndarray], names: Sequence[str]) -> Figure:
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    for k, (name, log_p) in enumerate(zip(names, values, strict=True)):
        axes.plot(x, log_p, color=COLOURS[k], linestyle=DASHES[k % 4], label=name)
    top = np.nanmax(values[-1])
    axes.set_ylim(top - DEPTH, top + 1)
    axes.set(xlabel="$x$ (data units)", ylabel="log density (nats)")
    axes.legend(frameon=False)
    return figure


def _shaded(name: str, log_density: Tensor) -> np.ndarray:
    """Log density relative to its largest value, cut off at -DEPTH, also for minus infinity; NaN stays."""
    lowest = torch.finfo(torch.float64).min
    log_p = numbers(name, log_density.double().clamp(min=lowest))
    return np.maximum(log_p - np.nanmax(log_p), -DEPTH)


def _name(
    axes: Any, i: int, j: int, count: int, rows: Sequence[str], columns: Sequence[str], names: tuple[str, str]
) -> None:
    """Titles above the first row, labels below the last and beside the first column."""
    if i == 0:
        axes.set_title(columns[j], fontsize=10)
    if i == count - 1:
        axes.set_xlabel(names[0])
    if j == 0:
        axes.set_ylabel(f"{rows[i]}\n{names[1]}")


def _note(axes: Any, text: str) -> None:
    axes.text(
        0.03, 0.03, text, transform=axes.transAxes, fontsize=9, bbox={"color": "white", "alpha": 0.85, "pad": 1.5}
    )

"""Guidance: what it draws by weight, and the noise levels at which it acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.images import levels_of
from scoresde.plots.style import COLOURS, DASHES, new_figure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH = 8  # nats below the largest log density at which the shading ends
CURVES = 2.7  # height of the curves, inches


class ByLevel(NamedTuple):
    """What guidance adds at each noise level.

    Attributes:
        noise_levels: sigma / alpha, `(n,)`.
        differences: for each curve the root mean square of an entry of the difference that is weighted, `(n,)`.
        information: for each curve what x_t tells of the class, nats, `(n,)`; no panel if there is none.
        entropy: of the class, nats: all that can be told; None if it is not known.
        interval: the noise levels with guidance, or None for all.
    """

    noise_levels: Tensor
    differences: Mapping[str, Tensor]
    information: Mapping[str, Tensor]
    entropy: float | None
    interval: tuple[float, float] | None


class Ground(NamedTuple):
    """What lies behind a cloud of points: a density on a grid, or other points.

    Attributes:
        grid: `(n, n, 2)`, points of the plane, or `(N, 2)`, the other points.
        log_density: `(n, n)`, or None for points.
    """

    grid: Tensor
    log_density: Tensor | None = None


class GuidedRow(NamedTuple):
    """The points of one weight.

    Attributes:
        title: names the weight.
        ground: what lies behind.
        clouds: for each way of drawing the points, `(N, 2)`.
        notes: for each of them a text in its panel.
    """

    title: str
    ground: Ground
    clouds: Sequence[Tensor]
    notes: Sequence[str]


def guided_points(
    rows: Sequence[GuidedRow],
    columns: Sequence[str],
    by_level: ByLevel | None,
    axes_names: tuple[str, str],
    title: str = "",
) -> Figure:
    """Points over a density or other points, a panel for each weight and way of drawing, on one scale.

    Args:
        rows: the weights.
        columns: titles of the ways of drawing.
        by_level: curves below the panels.
        axes_names: labels of the two axes.
        title: of all panels.
    """
    require(len(rows) > 0 and len(rows[0].clouds) > 0, "rows: there are no points; give at least one row of one cloud")
    size = min(3.0, max(2.0, 6.5 / len(columns)))
    width = max(size * len(columns) + 0.5, 6.5)
    figure, upper, lower = _parts(width, size * len(rows) + 0.8, by_level)
    panels = upper.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    upper.suptitle(title, fontsize=10)
    clouds = [[numbers(f"samples, {row.title}", cloud) for cloud in row.clouds] for row in rows]
    others = [numbers("ground", row.ground.grid) for row in rows if row.ground.log_density is None]
    low, high = _window([*(cloud for line in clouds for cloud in line), *others])
    for i, row in enumerate(rows):
        for j, cloud in enumerate(clouds[i]):
            axes = panels[i, j]
            _draw_ground(axes, row.ground)
            axes.scatter(cloud[:, 0], cloud[:, 1], s=3, color=COLOURS[j % 7], alpha=0.4, linewidths=0, zorder=2)
            axes.text(0.96, 0.95, row.notes[j], transform=axes.transAxes, ha="right", va="top", fontsize=9)
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            axes.set_aspect("equal")
            axes.tick_params(labelsize=8)
        panels[i, 0].set_ylabel(f"{row.title}\n{axes_names[1]}", fontsize=8)
    for j, name in enumerate(columns):
        panels[0, j].set_title(name, fontsize=9)
        panels[-1, j].set_xlabel(axes_names[0], fontsize=8)
    if by_level is not None:
        _draw_by_level(lower, by_level)
    return figure


def guided_images(
    titles: Sequence[str], grids: Sequence[Tensor], rows: Sequence[str], by_level: ByLevel | None
) -> Figure:
    """Grids of images side by side, one for each weight.

    Args:
        titles: of the grids.
        grids: `(rows, columns, C, H, W)` each, values in [0, 1].
        rows: labels of the rows; none if empty.
        by_level: curves below the grids.
    """
    require(len(grids) > 0, "grids: there are none; give at least one")
    arrays = [levels_of(grid.flatten(0, 1), grid.shape[1], 1) for grid in grids]
    width = max(2.1 * len(grids) + 0.4, 6.5)
    share = (width - 0.2 * len(grids) - 0.5) / len(grids)
    figure, upper, lower = _parts(width, share * arrays[0].shape[0] / arrays[0].shape[1] + 0.4, by_level)
    panels = upper.subplots(1, len(grids), squeeze=False)[0]
    for k, (axes, array, title) in enumerate(zip(panels, arrays, titles, strict=True)):
        axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        cell = (array.shape[0] - 1) / grids[k].shape[0]
        shown = rows if k == 0 else ()
        axes.set_yticks([(i + 0.5) * cell for i in range(len(shown))], shown, fontsize=9)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    if by_level is not None:
        _draw_by_level(lower, by_level)
    return figure


def _parts(width: float, height: float, by_level: ByLevel | None) -> tuple[Figure, Any, Any]:
    """A new figure, its part for the samples, and that for the curves below them, if there are any."""
    if by_level is None:
        figure = new_figure(width, height)
        return figure, figure, None
    figure = new_figure(width, height + CURVES)
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, CURVES])
    return figure, *parts


def _window(clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a square that holds nearly all points of each cloud."""
    low = np.nanmin([np.nanquantile(cloud, 0.003, axis=0) for cloud in clouds], axis=0)
    high = np.nanmax([np.nanquantile(cloud, 0.997, axis=0) for cloud in clouds], axis=0)
    half = 0.56 * max((high - low).max(), 1e-6)
    middle = (low + high) / 2
    return middle - half, middle + half


def _draw_ground(axes: Any, ground: Ground) -> None:
    if ground.log_density is None:
        x = numbers("ground", ground.grid)
        axes.scatter(x[:, 0], x[:, 1], s=2, color="0.75", linewidths=0, zorder=1)
        return
    log_p = numbers("log density", ground.log_density)
    x, y = (part.cpu().numpy() for part in ground.grid.unbind(-1))
    shade = np.fmax(log_p - np.nanmax(log_p), -DEPTH)
    axes.contourf(x, y, shade, levels=np.linspace(-DEPTH, 0, 9), cmap="Greys", vmin=-DEPTH, vmax=DEPTH, zorder=1)


def _draw_by_level(part: Any, by_level: ByLevel) -> None:
    """The difference by noise level, and beside it what x_t tells of the class."""
    count = 1 + bool(by_level.information)
    panels = part.subplots(1, count, squeeze=False, sharex=True)[0]
    noise_levels = numbers("noise_levels", by_level.noise_levels)
    curves = {
        "difference that is weighted": by_level.differences,
        "what $x_t$ tells of the class": by_level.information,
    }
    labels = ("RMS of an entry (data units)", "information (nats)")
    for axes, (title, lines), label in zip(panels, curves.items(), labels, strict=False):
        for k, (name, values) in enumerate(lines.items()):
            axes.plot(noise_levels, numbers(name, values), color=COLOURS[k], linestyle=DASHES[k % 4], label=name)
        axes.set_xscale("log")
        axes.set_xlabel("noise level $\\sigma/\\alpha$ (data units)", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.set_xlim(noise_levels.min(), noise_levels.max())
        if by_level.interval is not None:
            axes.axvspan(*by_level.interval, color=COLOURS[4], alpha=0.2, linewidth=0, label="with guidance")
    if by_level.entropy is not None and by_level.information:
        panels[1].axhline(by_level.entropy, color="black", linewidth=0.8, linestyle=":", label="entropy of the class")
    for axes in panels:
        axes.set_ylim(bottom=0)
    named = dict(zip(*reversed(panels[-1].get_legend_handles_labels()), strict=True))
    part.legend(named.values(), named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=8)

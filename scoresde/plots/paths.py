"""Paths between data and noise: over the plane, and in time and space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.style import COLOURS, new_figure, numbers, reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Paths(NamedTuple):
    """Paths under a title.

    Attributes:
        title: title of the panel.
        x: `(times, paths, 2)`, or `(times, paths, 1)`.
        kinds: the kind of each move as an index of `names`, `(times - 1,)`; None for one kind.
        names: names of the kinds.
    """

    title: str
    x: Tensor
    kinds: Tensor | None = None
    names: Sequence[str] = ()


class TimeSpace(NamedTuple):
    """The density of x_t on a line, through time.

    Attributes:
        title: title of the panel.
        t: times over t_max, `(times,)`.
        x: points of the line, `(n,)`.
        density: `(n, times)`.
        paths: paths drawn over it, `(times, paths)`.
    """

    title: str
    t: Tensor
    x: Tensor
    density: Tensor
    paths: Tensor


def trajectories(
    panels: Sequence[Paths],
    time_spaces: Sequence[TimeSpace] = (),
    unit: str = "data units",
    ground: Tensor | None = None,
) -> Figure:
    """Paths in the plane, and below them densities in time and space with their flow.

    Args:
        panels: the paths. A circle marks the start of a path, a dot its end. Paths on a line are drawn over the step.
        time_spaces: the panels of the lower row; there is no such row if empty.
        unit: unit of the axes.
        ground: points of the data, `(N, 2)`, drawn in grey below the paths in the plane.
    """
    require(len(panels) > 0, "panels: there are no paths; give at least one panel")
    size = 2.8
    rows = 1 + bool(time_spaces)
    figure = new_figure(size * len(panels) + 0.4, size * rows + 0.6)
    cells = figure.add_gridspec(rows, math.lcm(len(panels), len(time_spaces) or 1))

    def axes_of(row: int, k: int, count: int) -> Any:
        width = cells.ncols // count
        return figure.add_subplot(cells[row, k * width : (k + 1) * width])

    # all panels have the same axes, so that they can be compared; a few far points do not set the scale
    shown = np.concatenate([numbers(p.title, p.x).reshape(-1) for p in panels])
    ends = reach(*np.nanquantile(shown, [0.0005, 0.9995]))
    for k, paths in enumerate(panels):
        _draw_paths(axes := axes_of(0, k, len(panels)), paths, ends, ground)
        flat = paths.x.shape[2] == 1
        axes.set_xlabel("step" if flat else f"$x_1$ ({unit})")
        axes.set_ylabel("" if k else (f"$x$ ({unit})" if flat else f"$x_2$ ({unit})"))
    for k, part in enumerate(time_spaces):
        _draw_time_space(axes := axes_of(1, k, len(time_spaces)), part)
        axes.set_ylabel("" if k else "$x_t$ (data units)")
    return figure


def _draw_paths(axes: Any, paths: Paths, ends: tuple[float, float], ground: Tensor | None) -> None:
    x = numbers(paths.title, paths.x)
    steps, count, dim = x.shape
    flat = dim == 1
    if flat:
        x = np.stack(np.broadcast_arrays(np.arange(steps)[:, None], x[..., 0]), -1)
    elif ground is not None:
        axes.scatter(*numbers("ground", ground).T, s=3, color="0.82", linewidths=0, zorder=0)
    kinds = np.zeros(max(steps - 1, 1), dtype=int) if paths.kinds is None else paths.kinds.cpu().numpy()
    for kind in np.unique(kinds):
        moves = np.nonzero(kinds == kind)[0]
        moves = moves[moves < steps - 1]
        # each move is a separate line: NaN interrupts it
        lines = np.full((len(moves), 3, count, 2), np.nan)
        lines[:, 0] = x[moves]
        lines[:, 1] = x[moves + 1]
        name = paths.names[kind] if paths.names else None
        for k in range(count):
            colour = COLOURS[(kind if paths.names else k) % len(COLOURS)]
            drawn = lines[:, :, k].reshape(-1, 2)
            label = name if k == 0 else None
            axes.plot(drawn[:, 0], drawn[:, 1], color=colour, linewidth=0.9, alpha=0.8, label=label)
    axes.scatter(*x[0].T, s=26, facecolors="white", edgecolors="black", linewidths=0.9, zorder=3)
    axes.scatter(*x[-1].T, s=14, color="black", linewidths=0, zorder=4)
    axes.set_ylim(ends)
    if not flat:
        axes.set_xlim(ends)
        axes.set_aspect("equal")
    axes.set_title(paths.title, fontsize=10)
    if paths.names:
        axes.legend(frameon=True, framealpha=0.9, fontsize=8, loc="upper right")


def _draw_time_space(axes: Any, part: TimeSpace) -> None:
    density = numbers(part.title, part.density)
    # shaded relative to the largest density of each time; otherwise all but the data would be pale
    shade = density / np.nanmax(density, axis=0, keepdims=True).clip(1e-300)
    shade = np.ma.masked_invalid(shade)
    t = part.t.cpu().numpy()
    x = part.x.cpu().numpy()
    axes.contourf(t, x, shade, levels=np.linspace(0, 1, 21), cmap="Blues")
    axes.plot(t, numbers("paths", part.paths), color=COLOURS[1], linewidth=0.9)
    axes.set(xlim=(t.min(), t.max()), ylim=(x.min(), x.max()), xlabel="$t\\,/\\,t_{max}$")
    axes.set_title(part.title, fontsize=10)

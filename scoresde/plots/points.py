"""Points: by their first two coordinates, and on their way from noise to data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.style import COLOURS, new_figure, numbers, reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scatter(points: Tensor, labels: Tensor | None = None) -> Figure:
    """Points `(N, D)` by their first two coordinates (one coordinate: a histogram), coloured by label."""
    figure = new_figure(5, 5)
    axes = figure.subplots()
    points = points.detach().cpu()
    labels = None if labels is None else labels.cpu()
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


def point_strips(
    rows: Sequence[Sequence[Tensor]], names: Sequence[str], columns: Sequence[str], unit: str = "data units"
) -> Figure:
    """Clouds of points `(N, D)`, by their first two coordinates, a panel for each row and column, on one scale.

    Points of one coordinate are shown as histograms.

    Args:
        rows: for each row and column the points.
        names, columns: titles of the rows and columns.
        unit: unit of the points.
    """
    require(len(rows) > 0 and len(rows[0]) > 0, "rows: there are no points; give at least one row of one cloud")
    clouds = [[numbers(f"points of {name}", c.flatten(1)) for c in row] for row, name in zip(rows, names, strict=True)]
    line = clouds[0][0].shape[1] == 1
    size = 1.75 if len(columns) > 4 else 2.4
    figure = new_figure(size * len(columns) + 0.6, (size + 0.1) * len(rows) + 0.5)
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=not line)
    everything = np.concatenate([c for row in clouds for c in row])
    low, high = reach(np.nanmin(everything), np.nanmax(everything))
    for i, row in enumerate(clouds):
        for j, cloud in enumerate(row):
            axes = panels[i, j]
            if line:
                axes.hist(cloud[~np.isnan(cloud)], bins=np.linspace(low, high, 41), color=COLOURS[0])
                axes.set_yticks([])
            else:
                spot = 4 if len(cloud) > 100 else 16
                axes.scatter(cloud[:, 0], cloud[:, 1], s=spot, color=COLOURS[i % 2], alpha=0.5, linewidths=0)
                axes.set_ylim(low, high)
                axes.set_aspect("equal")
            axes.set_xlim(low, high)
            if i == 0:
                axes.set_title(columns[j], fontsize=9)
            if j == 0:
                axes.set_ylabel(f"{names[i]}\n" + ("count" if line else f"$x_2$ ({unit})"), fontsize=9)
            if i == len(rows) - 1:
                axes.set_xlabel(f"$x_1$ ({unit})", fontsize=9)
    return figure

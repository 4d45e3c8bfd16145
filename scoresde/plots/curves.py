"""Curves: errors, schedules and tables, mode weights, and the course of training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.style import COLOURS, DASHES, LINES, MISSING, literal, new_figure, numbers, reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Interval(NamedTuple):
    """A number, and the ends of an interval."""

    value: float
    low: float
    high: float


def error_curves(
    counts: Sequence[int], errors: Mapping[str, Sequence[float]], floor: float, labels: tuple[str, str]
) -> Figure:
    """Errors over numbers of evaluations on logarithmic axes; errors below `floor` are not resolved.

    Args:
        counts: the numbers of evaluations.
        errors: the errors of each curve, NaN if there is none.
        floor: the error of the truth itself.
        labels: labels of the two axes.
    """
    figure = new_figure(6.4, 4.4)
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


def schedules(
    t: Mapping[str, Tensor],
    quantities: Mapping[str, Mapping[str, Tensor]],
    logarithmic: Collection[str],
    grids: Mapping[str, Tensor],
    table: Tensor,
    columns: Sequence[str],
    titles: tuple[str, str],
) -> Figure:
    """The paths of SDEs, the steps of grids, and a solver's table.

    Args:
        t: for each SDE its times over t_max, `(n,)`.
        quantities: for each quantity, by its label, the values of each SDE `(n,)`.
        logarithmic: labels of the quantities on a logarithmic axis.
        grids: for each grid the noise levels of its steps.
        table: `(rows, columns)`, the numbers of a solver.
        columns: names of the columns.
        titles: titles of the grids and of the table.
    """
    figure = new_figure(11, 7)
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.05])
    upper, lower = halves
    panels = upper.subplots(1, len(quantities), squeeze=False)[0]
    for axes, (label, curves) in zip(panels, quantities.items(), strict=True):
        for k, (name, values) in enumerate(curves.items()):
            look = {"color": LINES[k % 8], "linestyle": DASHES[k % 4], "linewidth": 3.4 - 0.3 * (k % 8)}
            axes.plot(t[name], numbers(name, values), label=name, **look)  # thinner lines on top of thicker ones
        if label in logarithmic:
            everything = np.concatenate([numbers(name, v) for name, v in curves.items()])
            axes.set_yscale("log")
            axes.set_ylim(np.nanmedian(everything) / 1e3, 1.5 * np.nanmax(everything))
        axes.set(xlabel="$t\\,/\\,t_{max}$", title=label)
    upper.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(t), frameon=False)
    left, right = lower.subplots(1, 2, width_ratios=[1, 1.1])
    for k, (name, levels) in enumerate(grids.items()):
        left.plot(numbers(name, levels), np.full(len(levels), -k), "|", color=LINES[k % 8], markersize=14, mew=1.6)
    left.set(xscale="log", xlabel="noise level $\\sigma/\\alpha$ (data units)", title=titles[0])
    left.set_yticks([-k for k in range(len(grids))], list(grids))
    left.set_ylim(-len(grids) + 0.4, 0.6)
    left.grid(axis="x", alpha=0.3)
    _draw_table(right, table, columns)
    right.set_title(titles[1])
    return figure


def _draw_table(axes: Any, table: Tensor, columns: Sequence[str]) -> None:
    """Numbers in coloured cells: negative ones orange, positive ones violet."""
    values = numbers("table", table)
    require(values.ndim == 2, f"table of shape {values.shape}: need (rows, columns)")
    # by the logarithm of the magnitude, so that small numbers have colours too
    shade = np.sign(values) * np.log1p(99 * np.abs(values) / max(np.nanmax(np.abs(values)), 1e-300)) / np.log(100)
    axes.set_facecolor(MISSING)
    axes.imshow(shade, cmap="PuOr", vmin=-1.3, vmax=1.3, aspect="auto", interpolation="nearest")
    if len(values) <= 24:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(shade[i, j]) > 0.85 else "black"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("row: one evaluation of the model each")
    axes.yaxis.get_major_locator().set_params(integer=True)


def langevin(
    clouds: Mapping[str, Tensor],
    grid: Tensor,
    log_density: Tensor,
    steps: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    truth: Tensor,
) -> Figure:
    """Points of several chains over a mixture's density, and the weights of its modes through the steps.

    Args:
        clouds: for each chain, by its title, its points `(N, 2)` at the end.
        grid: points of the plane, `(n, n, 2)`.
        log_density: log density of the mixture, `(n, n)`.
        steps: for each chain, by its name, the shares of its steps at which weights are given, `(n,)`.
        weights: for each chain the weights of the modes, `(n, modes)`.
        truth: weights of the mixture, `(modes,)`.
    """
    figure = new_figure(3.1 * len(clouds) + 4.6, 3.5)
    panels = figure.subplots(1, len(clouds) + 1, width_ratios=[1] * len(clouds) + [1.25])
    log_p = numbers("log density", log_density)
    x, y = (part.cpu().numpy() for part in grid.unbind(-1))
    for k, (axes, (title, points)) in enumerate(zip(panels, clouds.items(), strict=False)):
        axes.contourf(x, y, np.fmax(log_p - np.nanmax(log_p), -10), levels=np.linspace(-10, 0, 11), cmap="Greys")
        axes.scatter(*numbers(title, points).T, s=4, color=COLOURS[k], alpha=0.5, linewidths=0)
        axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()), xlabel="$x_1$ (data units)")
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("" if k else "$x_2$ (data units)")
        axes.set_aspect("equal")
    axes = panels[-1]
    for k, (name, shares) in enumerate(weights.items()):
        at = steps[name].cpu().numpy()
        for mode, share in enumerate(numbers(name, shares).T):
            label = name if mode == 0 else None
            axes.plot(at, share, color=COLOURS[k], linestyle=DASHES[k % 4], label=label, linewidth=1.4)
    for mode, weight in enumerate(truth.tolist()):
        axes.axhline(weight, color="black", linewidth=0.8, linestyle=":", label=None if mode else "truth")
    axes.set(xlabel="share of the steps taken", ylabel="weight of a mode", ylim=(0, 1), xlim=(0, 1))
    axes.set_title("mode weights", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def training(
    records: Mapping[str, Sequence[float | None]],
    noise_levels: Tensor,
    errors: Mapping[str, Tensor],
    unit: str = "data units",
) -> Figure:
    """Loss and gradient norm over steps, and the denoiser's error at each noise level.

    Args:
        records: "step", "loss", "grad_norm" and, if there are any, "held_out_loss"; None for a missing value.
        noise_levels: sigma / alpha, `(n,)`.
        errors: for each curve the mean of |D - x_0|^2 / dim, `(n,)`.
        unit: unit of the data.
    """
    figure = new_figure(11, 3.5)
    left, middle, right = figure.subplots(1, 3)
    step = np.array(records["step"], dtype=float)
    require(len(step) > 0, "records: hold no step; train until metrics are logged (config.logging.every)")
    names = {"loss": "training", "held_out_loss": "held out"}
    for k, (name, label) in enumerate(names.items()):
        values = np.array([np.nan if v is None else v for v in records.get(name, ())], dtype=float)
        there = np.isfinite(values)
        if there.any():
            lone = "o" if k or there.sum() == 1 else ""
            left.plot(step[there], values[there], color=COLOURS[k], marker=lone, markersize=4, label=label)
    norms = np.array([np.nan if v is None else v for v in records["grad_norm"]], dtype=float)
    middle.plot(step, norms, color=COLOURS[2], marker="o" if len(step) == 1 else "")
    for axes, title in ((left, "loss"), (middle, "gradient norm")):
        axes.set(xlabel="step", ylabel=f"{title} (dimensionless)", xlim=reach(step.min(), step.max(), 0.02))
        axes.set_title(title, fontsize=10)
        lines = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.ones(0)])
        if np.isfinite(lines).any() and np.nanmax(lines) > 8 * np.nanmin(lines) > 0:
            axes.set_yscale("log")
        elif not np.isfinite(lines).any():
            axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
    if left.lines:
        left.legend(frameon=False)
    for k, (name, error) in enumerate(errors.items()):
        right.plot(
            numbers("noise_levels", noise_levels),
            numbers(name, error),
            color=COLOURS[k],
            linestyle=DASHES[k % 4],
            label=name,
        )
    right.set(xscale="log", yscale="log", xlabel=f"noise level $\\sigma/\\alpha$ ({unit})")
    right.set_ylabel(f"mean $|D - x_0|^2$ / dim (({unit})$^2$)")
    right.set_title("error by noise level", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    return figure


def classification(
    noise_levels: Tensor, losses: Mapping[str, Tensor], accuracies: Mapping[str, Tensor], num_classes: int
) -> Figure:
    """Loss and accuracy of a classifier of noisy samples at each noise level, beside those of a guess.

    Args:
        noise_levels: sigma / alpha, `(n,)`.
        losses: for each curve the mean of -log p(y | x_t) in nats, `(n,)`.
        accuracies: for each curve the share of samples that are classified rightly, `(n,)`.
        num_classes: classes that are told apart.
    """
    figure = new_figure(8, 3.5)
    left, right = figure.subplots(1, 2)
    guess = {"loss": math.log(num_classes), "accuracy": 1 / num_classes}
    panels = {"loss": (left, losses, "$-\\log p(y\\,|\\,x_t)$ (nats)"), "accuracy": (right, accuracies, "accuracy")}
    for title, (axes, curves, label) in panels.items():
        for k, (name, values) in enumerate(curves.items()):
            look = {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % 4]}
            axes.plot(numbers("noise_levels", noise_levels), numbers(name, values), label=name, **look)
        axes.axhline(guess[title], color="black", linewidth=0.8, linestyle=":", label="a guess")
        axes.set(xscale="log", xlabel="noise level $\\sigma/\\alpha$ (data units)", ylabel=label)
        axes.set_title(f"{title} by noise level", fontsize=10)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1.02)
    right.legend(frameon=False, fontsize=9)
    return figure


def measures_over(
    places: Sequence[int],
    measures: Mapping[str, Sequence[Interval]],
    floors: Mapping[str, float],
    axis: str,
    title: str,
) -> Figure:
    """Measures of samples over a number, a panel each: value, interval of infinitely many samples, and floor.

    Args:
        places: the numbers.
        measures: of each name, a measure for each place.
        floors: of each name, the measure of real samples, NaN if it is not known.
        axis: label of the numbers.
        title: what was measured.
    """
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure = new_figure(4.2 * columns, 3.2 * rows + 0.4)
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, found) in zip(panels.flat, measures.items(), strict=False):
        values, low, high = zip(*found, strict=True)
        axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.2, label="of infinitely many, 95 %")
        axes.plot(places, values, marker="o", color=COLOURS[0], label="value")
        if math.isfinite(floors[name]):
            axes.axhline(floors[name], color="0.4", linestyle="--", label="floor")
        axes.set(xlabel=axis, title=literal(name), xscale="log")
        axes.set_xticks(list(places), [str(place) for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(measures) :]:
        axes.set_axis_off()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(literal(title), fontsize=9)
    return figure

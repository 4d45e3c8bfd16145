"""Posterior samples of vectors and series, entry by entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoresde.plots.style import COLOURS, new_figure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CENTRAL = (0.05, 0.95)  # quantiles of the band


def posterior_curves(samples: Tensor, truth: Tensor | None = None, measured: Tensor | None = None) -> Figure:
    """A panel for each measurement: samples, their mean, and a band that holds the central 90 % of each entry.

    Args:
        samples: `(N, draws, D)`.
        truth: `(N, D)` what was measured, if it is known.
        measured: `(N, D)` the entries that were measured, NaN elsewhere.
    """
    drawn = numbers("samples", samples)
    figure = new_figure(7, 0.6 + 1.5 * len(drawn))
    panels = figure.subplots(len(drawn), 1, squeeze=False, sharex=True)[:, 0]
    places = np.arange(1, drawn.shape[2] + 1)
    for k, axes in enumerate(panels):
        low, high = np.nanquantile(drawn[k], CENTRAL, axis=0)
        axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="90 % of the samples")
        axes.plot(places, drawn[k].T, color=COLOURS[0], alpha=0.25, linewidth=0.6)
        axes.plot(places, np.nanmean(drawn[k], 0), color=COLOURS[0], linewidth=1.5, label="mean")
        if truth is not None:
            axes.plot(
                places, numbers("truth", truth[k]), color=COLOURS[7], linewidth=1.2, linestyle="--", label="truth"
            )
        if measured is not None:
            axes.plot(places, numbers("measured", measured[k]), "o", color=COLOURS[1], markersize=4, label="measured")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("entry")
    figure.supylabel("data units")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure

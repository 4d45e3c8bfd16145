"""How an autoencoder does: data, what comes back, the difference, the latents, and their laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.errors import require
from scoresde.plots.images import Strip, draw_strips, height_of_strips
from scoresde.plots.style import COLOURS, literal, new_figure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

WIDTH = 9.0  # inches
CHANNELS = 8  # of latents, shown as images
COLUMNS = 4  # histograms in a row
LAWS = 16  # channels with a histogram
REACH = 4.0  # standard deviations of the axis of a histogram
BINS = 48
LINES = 4  # samples of other data that are drawn as lines


class Encoded(NamedTuple):
    """Samples, and what an autoencoder makes of them.

    Attributes:
        data: the samples `(N, C, *sizes)`, or `(N, D)`, with values from 0 to 1.
        back: what comes back.
        shown: latents of the same samples, `(N, C_z, *smaller sizes)`, in units of a generative model.
        law: latents of many samples, drawn from the encoder's law, `(M, C_z, *smaller sizes)`.
        notes: what is written above each sample.
        title: what was encoded by what.
        law_title: what the histograms are of.
    """

    data: Tensor
    back: Tensor
    shown: Tensor
    law: Tensor
    notes: Sequence[str]
    title: str
    law_title: str


def autoencoder(encoded: Encoded) -> Figure:
    """Samples, reconstructions, differences, latents by channel, and histograms of the latents beside N(0, 1).

    Latents are grey at 0, black and white at three deviations. Data other than images are drawn as lines.
    """
    require(len(encoded.data) > 0 and len(encoded.law) > 0, "samples: there are none; give at least one")
    count = min(LAWS, encoded.law.shape[1])
    below = 0.45 + 1.25 * math.ceil(count / COLUMNS)
    images = encoded.data.ndim == 4
    strips = _strips(encoded) if images else []
    above = height_of_strips(strips, WIDTH) if images else 1.2 * min(LINES, len(encoded.data)) + 0.4
    figure = new_figure(WIDTH, above + below)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[above, below])[:, 0]
    if images:
        draw_strips(top, strips, WIDTH)
    else:
        _draw_lines(top, encoded)
    _draw_laws(bottom, encoded, count)
    return figure


def _strips(encoded: Encoded) -> list[Strip]:
    """The rows of images."""
    channels = 3 if encoded.data.shape[1] >= 3 else 1
    data, back = (part[:, :channels].detach().cpu().float() for part in (encoded.data, encoded.back))
    difference = back - data
    largest = difference.abs().amax().clamp(min=1e-12)
    rows = torch.stack([data, back, 0.5 + 0.5 * difference / largest])
    note = f"difference: grey is none, black and white are {largest.item():.2g} of the range of values"
    names = ("data", "back", "difference")
    z = encoded.shown.detach().cpu().float()
    kept = min(CHANNELS, z.shape[1])
    grey = F.interpolate((z[:, :kept] / 6 + 0.5).clamp(0, 1), size=data.shape[2:], mode="nearest")
    title = "latents, channel by channel" + (f": the first {kept} of {z.shape[1]}" if kept < z.shape[1] else "")
    return [
        Strip(literal(encoded.title), rows, names, encoded.notes, note),
        Strip(title, grey.movedim(1, 0)[:, :, None], [f"$z_{{{k + 1}}}$" for k in range(kept)]),
    ]


def _draw_lines(figure: FigureBase, encoded: Encoded) -> None:
    """The entries of samples in their order, and those that come back."""
    count = min(LINES, len(encoded.data))
    parts = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for k, axes in enumerate(parts):
        for values, label, colour, style in (
            (encoded.data, "data", COLOURS[0], "-"),
            (encoded.back, "back", COLOURS[1], "--"),
        ):
            axes.plot(numbers(label, values[k].flatten()), style, color=colour, lw=1, label=label)
        axes.set_ylabel(encoded.notes[k], fontsize=8)
    parts[0].set_title(literal(encoded.title), fontsize=10, loc="left")
    parts[0].legend(fontsize=8, loc="upper right")
    parts[-1].set_xlabel("entry", fontsize=9)


def _draw_laws(figure: FigureBase, encoded: Encoded, count: int) -> None:
    """A histogram of each channel, with its mean and deviation."""
    columns = min(COLUMNS, count)
    parts = figure.subplots(math.ceil(count / columns), columns, squeeze=False, sharex=True, sharey=True)
    line = torch.linspace(-REACH, REACH, 200)
    normal = (-0.5 * line**2).exp() / math.sqrt(2 * math.pi)
    law = encoded.law.detach().cpu().double()
    for k, axes in enumerate(parts.flat):
        if k >= count:
            axes.set_axis_off()
            continue
        values = law[:, k].flatten()
        heights, edges = torch.histogram(values, BINS, range=(-REACH, REACH))
        density = heights / (len(values) * 2 * REACH / BINS)
        axes.stairs(density.numpy(), edges.numpy(), fill=True, color=COLOURS[5])
        axes.plot(line.numpy(), normal.numpy(), color=COLOURS[7], lw=1)
        deviation, mean = (part.item() for part in torch.std_mean(values, correction=0))
        axes.set_title(f"$z_{{{k + 1}}}$: mean {mean:.2f}, deviation {deviation:.2f}", fontsize=8)
        axes.set_yticks([])
    more = f", of the first {count} of {law.shape[1]} channels" if count < law.shape[1] else ""
    figure.suptitle(literal(encoded.law_title) + more, fontsize=10, x=0.01, ha="left")

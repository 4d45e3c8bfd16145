"""How well texts and samples fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from scoresde.errors import require
from scoresde.plots.images import levels_of
from scoresde.plots.style import literal, new_figure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 60  # letters of a text that are shown


def similarities(values: Tensor, texts: Sequence[str], images: Tensor | None = None) -> Figure:
    """The similarity of each text, a row, to each sample, a column; those that belong together on the diagonal.

    Args:
        values: cosines `(n, n)`.
        texts: of the rows.
        images: of the columns, `(n, 1 or 3, H, W)` with values in [0, 1]; the columns are numbered if None.
    """
    count = len(texts)
    require(
        values.shape == (count, count), f"values of shape {tuple(values.shape)}: need ({count}, {count}), one each pair"
    )
    longest = max(len(text) for text in texts)
    figure = new_figure(2.5 + 0.4 * count + 0.06 * min(longest, LONGEST), 1.2 + 0.45 * count)
    grid = figure.add_gridspec(2, 1, height_ratios=(1, count), hspace=0.02)
    table = figure.add_subplot(grid[1])
    shown = table.imshow(numbers("values", values), vmin=-1, vmax=1, cmap="PuOr", aspect="auto")
    table.set_yticks(range(count), [literal(_short(text)) for text in texts], fontsize=8)
    table.set_xticks(range(count) if images is None else [])
    above = figure.add_subplot(grid[0], sharex=table)
    above.set_axis_off()
    if images is not None:
        pixels = levels_of(images, count, 1)
        place = (-0.5, count - 0.5, 0, 1)
        above.imshow(pixels, extent=place, aspect="auto", cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.colorbar(shown, ax=[above, table], label="cosine of sample and text")  # both stay equally wide
    return figure


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."

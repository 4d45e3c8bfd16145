"""How well images obey the captions for which they were drawn.

Two kinds of numbers: the share of the images in which a classifier sees the digit that was asked for, and for each
attribute the correlation of what was asked for with what is measured. A caption asks for a grade, which counts as its
number (-2 to 2; -1 to 1 for places), and only the captions that speak of an attribute count for it.

Within a grade, the attribute is free. So the correlation is below 1 for images that obey perfectly: for an attribute
that is uniform over k equal grades it is sqrt(1 - 1/k^2), 0.980 for 5 and 0.943 for 3. What real images reach with
their own captions is the ceiling to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.data.strokes import Strokes, measure_strokes
from scoresde.data.wording import Description
from scoresde.errors import require

FEWEST = 3  # samples of which a correlation says something


@final
@dataclass(frozen=True)
class Obedience:
    """How well images obey; NaN for what no caption asks for, or all ask for alike.

    Attributes:
        agreement: share of the images that are classified as the digit that was asked for.
        thickness, slant, size, x, y: correlations of the requested grades with what is measured.
    """

    agreement: float
    thickness: float
    slant: float
    size: float
    x: float
    y: float


def obedience(ink: Tensor, descriptions: Sequence[Description], seen: Tensor) -> Obedience:
    """Compares images with what was asked for.

    Args:
        ink: `(N, 1, H, W)`, 0 the paper and 1 full ink.
        descriptions: what the caption of each asks for; all name a digit.
        seen: `(N,)`, which digits a classifier sees.

    Raises:
        UsageError: for other numbers of images, or a caption without a digit, of which slant is not defined.
    """
    counts = (len(ink), len(descriptions), len(seen))
    require(len(set(counts)) == 1, "ink, descriptions, seen: of {}, {} and {} samples; need as many".format(*counts))
    wanted = [description.digit for description in descriptions]
    unsaid = wanted.count(None)
    require(unsaid == 0, f"descriptions: {unsaid} of {len(wanted)} name no digit; slant is measured against its usual")
    labels = torch.tensor(wanted)
    measured = measure_strokes(ink.cpu(), labels)
    found = {name: _correlation(descriptions, REQUESTS[name], getattr(measured, name)) for name in Strokes._fields}
    return Obedience((seen.cpu() == labels).double().mean().item(), **found)


def _place(axis: int) -> Callable[[Description], int | None]:
    return lambda description: None if description.position is None else description.position[axis]


REQUESTS: dict[str, Callable[[Description], int | None]] = {
    "thickness": lambda description: description.thickness,
    "slant": lambda description: description.slant,
    "size": lambda description: description.size,
    "x": _place(0),
    "y": _place(1),
}


def _correlation(
    descriptions: Sequence[Description], request: Callable[[Description], int | None], measured: Tensor
) -> float:
    """Pearson's, over the samples of which something is requested."""
    requests = [request(description) for description in descriptions]
    index = [number for number, requested in enumerate(requests) if requested is not None]
    asked = torch.tensor([requests[number] for number in index], dtype=torch.float64)
    if len(index) < FEWEST or asked.min() == asked.max():
        return math.nan
    return torch.corrcoef(torch.stack([asked, measured[index]]))[0, 1].item()

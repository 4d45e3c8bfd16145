"""`digits_text`: handwritten digits drawn anew with pens of all widths, with captions that say what is to be seen.

The 1,797 digits of scikit-learn are reduced to the lines along which the pen moved (`centre_lines`). At 8 x 8 pixels
some cannot be read; about one in ten whose lines look like those of another digit is left out. Each other one is drawn
`VARIANTS` times on 24 x 24 pixels. Height H, width of the pen over H, slant and place are drawn evenly from the ranges
of `EDGES`, independently of each other. With the points q of the lines sheared, scaled and moved, a pixel p has

    ink(p) = clip(1/2 + w/2 - min_q |p - q|, 0, 1),    w the width of the pen,

which is a clean stroke with smooth edges. The shear that a digit has by itself is replaced, not added to. Where lines
lie close together they run into each other and look thicker, so each digit is drawn twice, with a pen that is corrected
by the thickness found in the first image. A digit that would not lie on the canvas is moved back onto it.

The captions say what `measure_strokes` finds in the images, not what was drawn.

Everything is float64 and seeded, so that the bytes of the images are the same everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.captioning import describe, digit_captions, with_captions
from scoresde.data.centre_lines import Lines, centre_lines
from scoresde.data.strokes import EDGES, UPRIGHT, measure_strokes

SIDE = 24
VARIANTS = 6
SEED = 0
NEIGHBOURS = 5
PROPORTIONS = (0.85, 1.15)  # widths of the digits over their own
THINNEST = 1.0  # width of a pen, in pixels: a thinner one leaves no full ink
MARGIN = 0.5  # pixels that stay white at each edge, if there is room
REACH = 3  # pixels around a point that the pen can touch


def digits_text() -> ArrayData:
    """9,684 drawn digits, 24 x 24, with captions in the wordings for training."""
    images, labels = draw_digits()
    strokes = measure_strokes(images / 255, labels)
    data = ArrayData(images, codec=Scaling(127.5, 127.5))
    return with_captions(data, digit_captions(describe(strokes, labels, EDGES)))


class Drawn(NamedTuple):
    """Images `(N, 1, 24, 24)` of bytes, paper 0 and ink 255, and the digits that they show, `(N,)`."""

    images: Tensor
    labels: Tensor


def draw_digits() -> Drawn:
    """All images, in the order of the digits, each one's variants together."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    lines = centre_lines(torch.from_numpy(bunch.images)[:, None] / 16)
    labels = torch.from_numpy(bunch.target).long()
    kept = _clear(lines, labels)
    lines, labels = Lines(lines.points[kept], lines.real[kept]), labels[kept]
    generator = torch.Generator().manual_seed(SEED)
    u = torch.rand(len(labels), VARIANTS, 6, generator=generator, dtype=torch.float64)
    images = [_draw_as_wanted(lines, labels, u[:, number]) for number in range(VARIANTS)]
    return Drawn(torch.stack(images, 1).flatten(0, 1), labels.repeat_interleave(VARIANTS))


def _clear(lines: Lines, labels: Tensor) -> Tensor:
    """Which digits can be read: if all are drawn upright and of one size, the nearest others are the same digit."""
    middle = torch.full((len(labels), 6), 0.5, dtype=torch.float64)
    pen = torch.full((len(labels),), EDGES["thickness"][3], dtype=torch.float64)
    drawn = _draw(lines, labels, middle, pen)
    x = F.avg_pool2d(drawn.double(), 3, 1, 1).flatten(1)
    apart = torch.cdist(x, x).fill_diagonal_(torch.inf)
    nearest = apart.topk(NEIGHBOURS, largest=False).indices
    return (labels[nearest] == labels[:, None]).all(1)


def _draw_as_wanted(lines: Lines, labels: Tensor, u: Tensor) -> Tensor:
    """One image of each digit; its pen is corrected once by the thickness that a first image has."""
    wanted = _within(u[:, 1], *_ends("thickness"))
    first = _draw(lines, labels, u, wanted)
    found = measure_strokes(first / 255, labels).thickness
    return _draw(lines, labels, u, 2 * wanted - found)


def own_shear(points: Tensor, real: Tensor, extra: Tensor | float = 0.0) -> Tensor:
    """Shear of lines `(N,)` by their moments, to the right for each unit up; `extra` adds to the moment of y."""
    centred = points - _mean(points, real)[:, None]
    squares, mixed = (_mean(centred * centred[..., [place]], real)[:, 1] for place in (1, 0))
    return -mixed / (squares + extra)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    return (values * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def _draw(lines: Lines, labels: Tensor, u: Tensor, pen: Tensor) -> Tensor:
    """One image of each digit.

    Args:
        lines: of the digits.
        labels: `(N,)`.
        u: `(N, 6)`, numbers from 0 to 1 that choose the attributes.
        pen: `(N,)`, width of the pen over the height of the digit.
    """
    points, real = lines
    height = SIDE * _within(u[:, 0], *_ends("size"))
    width = (height * pen).clamp(min=THINNEST)
    slant = _within(u[:, 2], *_ends("slant")) + torch.tensor(UPRIGHT, dtype=torch.float64)[labels]
    low, high = _box(points, real)
    scale = (height - width) / (high - low)[:, 1]
    q = (points - _mean(points, real)[:, None]) * scale[:, None, None]
    x, y = q.unbind(2)
    x = x * _within(u[:, 3], *PROPORTIONS)[:, None]
    q = torch.stack([x, y], 2)
    squares = _mean(q.square(), real)[:, 1]
    wanted = slant * (1 + width.square() / (16 * squares))  # the pen itself has no slant
    x = x - (wanted - own_shear(q, real))[:, None] * y
    q = torch.stack([x, y], 2)
    q = q - _mean(q, real)[:, None]
    shift = SIDE * torch.stack([_within(u[:, 4], *_ends("x")), _within(u[:, 5], *_ends("y"))], 1)
    low, high = _box(q, real)
    room = (SIDE / 2 - MARGIN - width / 2)[:, None]
    lowest, highest = -room - low, room - high
    middle = (lowest + highest) / 2
    shift = torch.where(lowest <= highest, shift.clamp(lowest, highest), middle)
    return _pen(q + shift[:, None], real, width)


def _ends(attribute: str) -> tuple[float, float]:
    return EDGES[attribute][0], EDGES[attribute][-1]


def _within(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _box(points: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest coordinates, `(N, 2)` each."""
    outside = ~real[..., None]
    return points.masked_fill(outside, torch.inf).amin(1), points.masked_fill(outside, -torch.inf).amax(1)


def _pen(points: Tensor, real: Tensor, width: Tensor) -> Tensor:
    """Images of lines, points `(N, K, 2)` from the middle of the canvas, as bytes."""
    parts = zip(points.split(256), real.split(256), width.split(256), strict=True)
    return torch.cat([_pen_part(*part) for part in parts])


def _pen_part(points: Tensor, real: Tensor, width: Tensor) -> Tensor:
    """Each pixel's distance to the nearest point, of which only those nearby are tried, as ink."""
    image, number = real.nonzero(as_tuple=True)
    q = points[image, number] + (SIDE - 1) / 2
    padded = SIDE + 2 * REACH
    nearest = q.round().long()
    distance = torch.full((len(points) * padded**2,), torch.inf, dtype=torch.float64)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            place = (nearest + torch.tensor([right, down])).clamp(-REACH, SIDE + REACH - 1)
            squares = (place - q).square().sum(1)
            flat = (image * padded + place[:, 1] + REACH) * padded + place[:, 0] + REACH
            distance.scatter_reduce_(0, flat, squares, "amin")
    inner = distance.view(len(points), 1, padded, padded)[..., REACH:-REACH, REACH:-REACH].sqrt()
    ink = (0.5 + width[:, None, None, None] / 2 - inner).clamp(0, 1)
    return (255 * ink).round().to(torch.uint8)

"""What can be measured of a handwritten digit: thickness, slant, size and position.

All are found from the image alone, by sums over grey levels, so that they change smoothly with it. With the ink
a(x, y) from 0 to 1, its total A, its mean place and its central moments mu,

- size is the height of the digit over that of the image: the number of rows that its strokes reach;
- thickness is the width w of the stroke over the height of the digit. A stroke of length L with round ends has
  A = L w + pi w^2 / 4 and a boundary of P = 2 L + pi w (Steiner's formula). Without L, and with the Euler number chi of
  the shape (1 less its holes), A = P w / 2 - chi pi w^2 / 4. P is the total variation of the ink. A stroke of less than
  two pixels is nowhere full ink, and is found to be up to half a pixel too thick;
- slant is the shear -mu11 / mu02: how far the top leans to the right, for each unit of height;
- x and y are the mean place, from the middle of the image, as shares of its width and height, y down.

**Thickness is relative to the height**, as a pen that is thick for a small digit would be thin for a large one: in
absolute terms a small digit with a thick pen is a blot. **Slant is relative to what is usual for the digit**: a 7
leans by its shape, so the same shear would call nearly all of them slanted. `UPRIGHT` holds what is usual, the mean of
each class of the digits of scikit-learn. So `measure_strokes` needs the labels. Size and position are not relative.

A grade is one of a few intervals of an attribute, numbered around 0 in the middle: -2..2 of thickness, slant and size,
-1..1 of x and y. The edges of `EDGES` are those of the built-in data `digits_text`, in which each grade is as frequent
as any other. Other data have edges of their own, by `quantile_edges`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.errors import require

# Shear of the digits of scikit-learn, the mean of each class: `own_shear` of their lines
UPRIGHT = (-0.011, -0.062, -0.125, -0.082, -0.045, -0.068, -0.267, 0.133, 0.01, -0.116)
HOLES = (1, 0, 0, 0, 0, 0, 1, 0, 2, 1)


def _even(low: float, high: float, num_grades: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * i / num_grades for i in range(num_grades + 1))


EDGES: Mapping[str, tuple[float, ...]] = {
    "thickness": (0.14, 0.162, 0.179, 0.197, 0.217, 0.245),
    "slant": _even(-0.45, 0.45, 5),
    "size": _even(9.5 / 24, 17.5 / 24, 5),
    "x": _even(-2.5 / 24, 2.5 / 24, 3),
    "y": _even(-2.5 / 24, 2.5 / 24, 3),
}


class Strokes(NamedTuple):
    """Attributes of N digits, each `(N,)`, float64; see the module."""

    thickness: Tensor
    slant: Tensor
    size: Tensor
    x: Tensor
    y: Tensor


def measure_strokes(ink: Tensor, labels: Tensor) -> Strokes:
    """Measures digits.

    Args:
        ink: images `(N, 1, H, W)` of any size, 0 the paper and 1 full ink; values beyond are cut.
        labels: `(N,)`, which digits they are, 0 to 9.

    Raises:
        UsageError: for other shapes or labels.
    """
    require(
        ink.ndim == 4 and ink.shape[1] == 1 and len(ink) > 0,
        f"ink of shape {tuple(ink.shape)}: need grey images of digits, (N, 1, height, width)",
    )
    require(
        labels.shape == ink.shape[:1] and int(labels.min()) >= 0 and int(labels.max()) <= 9,
        f"labels of shape {tuple(labels.shape)}: need {len(ink)} digits, 0 to 9",
    )
    parts = [_measure(*part) for part in zip(ink.split(1024), labels.to(ink.device).split(1024), strict=True)]
    return Strokes(*map(torch.cat, zip(*parts, strict=True)))


def _measure(ink: Tensor, labels: Tensor) -> Strokes:
    a = ink[:, 0].double().clamp(0, 1)
    height, width = a.shape[1:]
    place_y = torch.arange(height, dtype=a.dtype, device=a.device) - (height - 1) / 2
    place_x = torch.arange(width, dtype=a.dtype, device=a.device) - (width - 1) / 2
    area = a.sum((1, 2)).clamp(min=1e-9)
    rows, columns = a.sum(2), a.sum(1)
    y = (rows * place_y).sum(1) / area
    x = (columns * place_x).sum(1) / area
    from_y = place_y - y[:, None]
    from_x = place_x - x[:, None]
    mixed = (a * from_y[:, :, None] * from_x[:, None]).sum((1, 2))
    upright = (rows * from_y.square()).sum(1).clamp(min=1e-9)
    usual = torch.tensor(UPRIGHT, dtype=a.dtype, device=a.device)[labels]
    reached = ((a.amax(2) - 0.25) / 0.5).clamp(0, 1).sum(1).clamp(min=1.0)  # half covered counts half
    chi = 1 - torch.tensor(HOLES, dtype=a.dtype, device=a.device)[labels]
    thickness = pen_width(area, boundary(a), chi)
    return Strokes(thickness / reached, -mixed / upright - usual, reached / height, x / width, y / height)


def boundary(a: Tensor) -> Tensor:
    """Length of the boundary of shapes `(N, H, W)`, in pixels: the total variation, of slopes at pixels' corners."""
    p = torch.nn.functional.pad(a, (1, 1, 1, 1))
    right = (p[:, 1:, 1:] + p[:, :-1, 1:] - p[:, 1:, :-1] - p[:, :-1, :-1]) / 2
    down = (p[:, 1:, 1:] + p[:, 1:, :-1] - p[:, :-1, 1:] - p[:, :-1, :-1]) / 2
    return (right.square() + down.square()).sqrt().sum((1, 2))


def pen_width(area: Tensor, length: Tensor, chi: Tensor) -> Tensor:
    """The width w of strokes with A = P w / 2 - chi pi w^2 / 4.

    A shape with one hole or none has a real solution unless noise shortens its boundary; then the nearest is taken.
    """
    root = (length.square() - 4 * math.pi * chi * area).clamp(min=0).sqrt()
    return 4 * area / (length + root).clamp(min=1e-9)  # the smaller root, without cancellation


def grades(measured: Tensor, edges: tuple[float, ...]) -> Tensor:
    """The grades of an attribute, `(N,)`, around 0; values beyond the ends have the outermost grades."""
    inner = torch.tensor(edges[1:-1], dtype=measured.dtype, device=measured.device)
    return torch.bucketize(measured, inner) - (len(edges) - 2) // 2


def quantile_edges(measured: Tensor, num_grades: int) -> tuple[float, ...]:
    """Edges between which equal shares of some measured values lie."""
    shares = torch.linspace(0, 1, num_grades + 1, dtype=measured.dtype)
    return tuple(torch.quantile(measured.cpu(), shares).tolist())

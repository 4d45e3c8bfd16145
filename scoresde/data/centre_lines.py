"""The lines along which a pen moved that wrote the handwritten digits of 8 x 8 pixels.

1. A digit becomes a surface f, high along the strokes, by bicubic interpolation and Gaussian smoothing.
2. Where a stroke lies, f bends down across it: with lambda the smaller eigenvalue of its Hessian, strokes are the
   places with -lambda > `RIDGE`. This keeps the small loops of 6, 8 and 9, which a threshold on f fills.
3. Strokes are thinned to lines of one pixel (Zhang and Suen, Communications of the ACM 27, 1984), and stray dots are
   left out.
4. Each point moves to the weighted mean of its neighbours, which removes the steps of the grid.

All is float64 and has no random part. So the lines are the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ENLARGE = 5  # pixels of the fine grid a pixel
SPREAD = 0.5  # deviation of the smoothing, in pixels
RIDGE = 0.2  # curvature of a stroke, in units of full ink a pixel squared
FAINT = 0.2  # ink below which there is no stroke
SMOOTHING = 1.5  # deviation of the weights of neighbours, in pixels of the fine grid
NEAR = 5.0  # pixels of the fine grid, within which a point needs COMPANY others
COMPANY = 4
AROUND = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))  # neighbours, clockwise from the upper one


class Lines(NamedTuple):
    """Points along the lines of N digits.

    Attributes:
        points: `(N, K, 2)`, x to the right and y down, in pixels of the small image from the middle of its first.
        real: `(N, K)`, which of them count; the others only fill up.
    """

    points: Tensor
    real: Tensor


def centre_lines(images: Tensor) -> Lines:
    """The centre lines of images `(N, 1, 8, 8)` of ink from 0 to 1."""
    mask = torch.cat([_strokes(part) for part in images.double().split(256)])
    thin = torch.from_numpy(thinned(mask.numpy()))
    most = int(thin.sum((1, 2)).max())
    order = torch.argsort(thin.flatten(1).to(torch.uint8), stable=True, dim=1, descending=True)[:, :most]
    real = thin.flatten(1).gather(1, order)
    width = thin.shape[2]
    points = torch.stack([order % width, order // width], 2).double()
    parts = [_smoothed(*part) for part in zip(points.split(256), real.split(256), strict=True)]
    points, real = (torch.cat(found) for found in zip(*parts, strict=True))
    return Lines((points + 0.5) / ENLARGE - 1.5, real)


def _strokes(images: Tensor) -> Tensor:
    """Where strokes lie on the fine grid, `(N, H, W)`."""
    value, first, second = _bases(images.shape[2])

    def surface(down: Tensor, right: Tensor) -> Tensor:
        return down @ images[:, 0] @ right.T

    xx, yy, xy = surface(value, second), surface(second, value), surface(first, first)
    smaller = (xx + yy) / 2 - ((xx - yy).square() / 4 + xy.square()).sqrt()
    return (-smaller > RIDGE) & (surface(value, value) > FAINT)


def _bases(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The surface of one row of pixels and its two derivatives, each `(fine places, side)`; a pixel of margin."""
    eye = F.pad(torch.eye(side, dtype=torch.float64), (1, 1))  # row i: the pixel i alone
    fine = F.interpolate(eye[None, :, :, None], scale_factor=(ENLARGE, 1), mode="bicubic")[0, :, :, 0].T
    place = torch.arange(len(fine), dtype=torch.float64)
    weights = torch.exp(-(place[:, None] - place).square() / (2 * (SPREAD * ENLARGE) ** 2))
    value = weights / weights.sum(1, keepdim=True) @ fine
    around = F.pad(value, (0, 0, 1, 1))
    first = (around[2:] - around[:-2]) * (ENLARGE / 2)
    second = (around[2:] - 2 * value + around[:-2]) * ENLARGE**2
    return value, first, second


def thinned(mask: np.ndarray) -> np.ndarray:
    """Shapes `(N, H, W)`, True inside, thinned to lines of one pixel."""
    rules = [_removable(first) for first in (True, False)]
    height, width = mask.shape[1:]
    x = np.pad(mask, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    inner = x[:, 1:-1, 1:-1]
    changed = True
    while changed:
        changed = False
        for rule in rules:
            code = np.zeros_like(inner)
            for bit, (top, left) in enumerate(AROUND):
                code |= x[:, top : top + height, left : left + width] << bit
            gone = rule[code] & (inner > 0)
            changed = changed or bool(gone.any())
            inner[gone] = 0
    return inner > 0


def _removable(first: bool) -> np.ndarray:
    """Zhang and Suen's conditions of one of two half steps, for each of 256 neighbourhoods."""
    found = np.zeros(256, bool)
    for code in range(256):
        inside = [code >> bit & 1 for bit in range(8)]
        changes = sum(inside[i] < inside[(i + 1) % 8] for i in range(8))
        up, right, down, left = inside[::2]
        open_side = not (up and right and down) and not (right and down and left)
        if not first:
            open_side = not (up and right and left) and not (up and down and left)
        found[code] = 2 <= sum(inside) <= 6 and changes == 1 and open_side
    return found


def _smoothed(points: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Points moved to the weighted means of those around them, and which of them are no stray dots."""
    x, y = points.unbind(2)
    squares = (x[:, :, None] - x[:, None]).square() + (y[:, :, None] - y[:, None]).square()
    weights = torch.exp(-squares / (2 * SMOOTHING**2)) * real[:, None]
    total = weights.sum(2)
    moved = torch.stack([(weights * z[:, None]).sum(2) / total.clamp(min=1e-9) for z in (x, y)], 2)
    company = ((squares < NEAR**2) & real[:, None]).sum(2) > COMPANY
    return moved, real & company

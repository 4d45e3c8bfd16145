"""The score as arrows over the log density at several times, learned beside exact, and its error.

Data of more than two entries are seen in the plane of their two principal directions through their mean: the arrows
are what of the score lies along it, and the density is that on the plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Plane, Subject, in_chunks
from scoresde.condition import Condition
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE_LEVELS = (0.05, 0.15, 0.4, 1.5)  # sigma / alpha, for data of about unit deviation
NOISE_LEVELS_OF_MANY = (0.5, 1.0, 2.0, 5.0)  # where there are many entries, below that all of a plane is far from data
POINTS = 72  # along an axis
FRAMES = 9


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """A row for the model, the exact score and the error, a column for each noise level."""
    subject = subject.of_one_class()
    plane = Plane(subject.train)
    levels = subject.levels(torch.tensor(NOISE_LEVELS if plane.flat else NOISE_LEVELS_OF_MANY))
    columns = [_title(levels[k]) for k in range(len(levels.t))]
    looks = [_look(subject, plane, levels[k]) for k in range(len(columns))]
    grids, log_densities, fields, errors = zip(*looks, strict=True)
    rows = _rows(subject)
    if plane.directions.shape[0] == 1:
        scores = [[fields[k][i][:, 0] for k in range(len(columns))] for i in range(len(rows))]
        return plots.score_curves([g[:, 0] for g in grids], log_densities, scores, rows, columns)
    notes = [[""] * len(columns)] * (len(rows) - 1) + [[f"RMS {100 * e:.0f} %" for e in errors]]
    return plots.score_fields(
        grids,
        log_densities,
        [[of[i] for of in fields] for i in range(len(rows))],
        rows,
        columns,
        notes=notes if len(rows) > 1 else (),
        axes_names=plane.names,
    )


def frames(subject: Subject, options: FigureOptions) -> list[Figure]:
    """The same over time, from noise to data: the model, the exact score and the error side by side."""
    subject = subject.of_one_class()
    plane = Plane(subject.train)
    ends = (NOISE_LEVELS if plane.flat else NOISE_LEVELS_OF_MANY)[:: len(NOISE_LEVELS) - 1]
    last, first = (math.log10(end) for end in ends)
    levels = subject.levels(torch.logspace(first, last, FRAMES))
    drawn = []
    for k in range(FRAMES):
        level = levels[k]
        grid, log_density, fields, _ = _look(subject, plane, level)
        names = [f"{row}, {_title(level)}" if i == 0 else row for i, row in enumerate(_rows(subject))]
        if grid.shape[-1] == 1:
            scores = [[field[:, 0]] for field in fields]
            drawn.append(plots.score_curves([grid[:, 0]], [log_density], scores, _rows(subject), [_title(level)]))
            continue
        count = len(fields)
        top = max(field.norm(dim=-1).max().item() for field in fields)
        drawn.append(
            plots.score_fields(
                [grid] * count,
                [log_density] * count,
                [fields],
                [""],
                names,
                largest=[top] * count,
                axes_names=plane.names,
            )
        )
    return drawn


def _rows(subject: Subject) -> list[str]:
    return [subject.name, subject.truth_name, "error"] if subject.learned else [subject.name]


def _title(level: Level) -> str:
    return f"t = {level.t.item():.3g},  $\\sigma/\\alpha$ = {level.noise_level.item():.2g}"


def _look(subject: Subject, plane: Plane, level: Level) -> tuple[Tensor, Tensor, Sequence[Tensor], float]:
    """Grid, log density, the fields of each row, and the relative error, weighted by the density on the grid."""
    exact = subject.exact
    device = subject.model.device
    dtype = subject.model.dtype
    grid = plane.grid(POINTS, level)
    places = grid.flatten(0, -2)
    size = subject.batch_size()
    t = level.t.item()
    at = level.to(device, dtype)

    def points(some: Tensor) -> Tensor:
        return plane.points(some, level.alpha).to(device, dtype)

    def field(model: ScoreModel, cond: Condition) -> Tensor:
        with model.eval_mode():
            along = in_chunks(
                lambda some, given: plane.vectors(model.score(points(some), t, given)), places, size, cond
            )
        return along.reshape(grid.shape)

    log_density = in_chunks(lambda some, _: exact.target.log_prob(points(some), at.alpha, at.sigma), places, size)
    truth = field(exact, None)
    if not subject.learned:
        return grid, log_density.reshape(grid.shape[:-1]), [truth], 0.0
    learned = field(subject.model, subject.labels(len(places)))
    weight = log_density.softmax(0).reshape(grid.shape[:-1])
    off, whole = ((weight * part.square().sum(-1)).sum() for part in (learned - truth, truth))
    return grid, log_density.reshape(grid.shape[:-1]), [learned, truth, learned - truth], (off / whole).sqrt().item()

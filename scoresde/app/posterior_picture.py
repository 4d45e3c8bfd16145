"""The picture of `--mode solve`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde import plots
from scoresde._files import write_bytes
from scoresde.app.tasks import Problems, Task
from scoresde.operators import LinearOperator, Mask, Operator
from scoresde.plots.images import GREY

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure


SHOWN = 6  # measurements
DRAWS = 5  # of each


def save_posteriors(path: Path, task: Task, problems: Problems, x: Tensor) -> None:
    """Images: a row for each measurement, with some samples, their mean and deviation. Otherwise points, or curves.

    Args:
        path: the file.
        task: what was measured.
        problems: what was found from.
        x: `(N, draws, *shape)`, in units of the data.
    """
    if x.ndim == 5 and x.shape[2] in (1, 3):
        figure = _images(task, problems, x)
    elif math.prod(x.shape[2:]) <= 3:
        figure = _points(task, problems, x)
    else:
        figure = _curves(task, problems, x)
    write_bytes(path, plots.png_bytes(plots.image_of(figure, dpi=120)))


def _points(task: Task, problems: Problems, x: Tensor) -> Figure:
    which = torch.arange(min(SHOWN, len(x))).repeat_interleave(x.shape[1])
    points = task.decode(x[:SHOWN].flatten(0, 1)).flatten(1)
    figure = plots.scatter(points, which)
    if problems.truth is not None and points.shape[1] > 1:
        truth = task.decode(problems.truth[:SHOWN]).flatten(1)
        figure.axes[0].plot(truth[:, 0], truth[:, 1], "x", color="black", label="what was measured")
        figure.axes[0].legend()
    return figure


def _curves(task: Task, problems: Problems, x: Tensor) -> Figure:
    shown = x[:SHOWN]
    samples = task.decode(shown.flatten(0, 1)).flatten(1).unflatten(0, shown.shape[:2])
    truth = None if problems.truth is None else task.decode(problems.truth[:SHOWN]).flatten(1)
    measured = None
    operator = task.operator
    if isinstance(operator, Mask):
        put = task.decode(operator.adjoint(problems.y[:SHOWN])).float()
        measured = torch.where(operator.seen, put, torch.nan).flatten(1)
    return plots.posterior_curves(samples, truth, measured)


def _images(task: Task, problems: Problems, x: Tensor) -> Figure:
    info = task.trained.data
    rows = min(SHOWN, len(x))
    draws = min(DRAWS, x.shape[1])

    def shown(part: Tensor) -> Tensor:
        return info.to_unit(task.decode(part).float()).clamp(0, 1)

    raw = shown(x[:rows].flatten(0, 1)).unflatten(0, (rows, x.shape[1]))
    columns = []
    names = []
    if problems.truth is not None:
        columns.append(shown(problems.truth[:rows]))
        names.append("truth")
    columns.append(_as_picture(task.operator, problems.y[:rows], shown))
    names.append("measured")
    columns.append(raw.mean(1))
    names.append("mean")
    deviation = raw.std(1)
    columns.append(deviation / deviation.max().clamp(min=1e-6))
    names.append("deviation")
    columns += list(raw[:, :draws].unbind(1))
    names += ["samples"] + [""] * (draws - 1)
    note = f"The deviation is 0 where black, and {deviation.max():.2g} of the range where white."
    strip = plots.Strip("", torch.stack(columns, 1), columns=names, note=note)
    return plots.image_strips([strip], width=0.8 + 0.9 * len(names))


def _as_picture(operator: Operator, y: Tensor, shown: Callable[[Tensor], Tensor]) -> Tensor:
    """Measurements as images of the samples' size."""
    shape = operator.shape
    if isinstance(operator, Mask):
        seen = operator.seen
        found = shown(operator.adjoint(y))
        return torch.where(seen, found, GREY)
    images = y
    if y.ndim != 4 or y.shape[1] not in (1, 3):
        if not isinstance(operator, LinearOperator):
            return torch.full((len(y), *shape), GREY)
        images = operator.adjoint(y)
        images = images / images.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1).clamp(min=1e-6)
        return (0.5 + 0.5 * images).clamp(0, 1)
    if not isinstance(operator, LinearOperator) and images.shape[1:] != shape:
        images = images / images.flatten(1).amax(1).reshape(-1, 1, 1, 1).clamp(min=1e-6)
    else:
        images = shown(images.expand(-1, shape[0], -1, -1)) if images.shape[1] != shape[0] else shown(images)
    images = torch.nn.functional.interpolate(images, shape[1:], mode="nearest")
    return images.expand(-1, shape[0], -1, -1)

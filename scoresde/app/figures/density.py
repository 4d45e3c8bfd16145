"""The log density of a model by its probability flow, over a grid, beside the true one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from samplers import log_prob
from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Plane, Subject, in_chunks
from scoresde.app.progress import Progress
from scoresde.errors import require
from scoresde.sde import Level
from scoresde.targets import EmpiricalDistribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 56
POINTS_OF_A_LINE = 300
EVALUATIONS = 24
BANDWIDTH = 0.07  # of the kernels that stand for a density where only points are known, in data deviations


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Learned, exact, and their difference where there is density."""
    shape = subject.train.shape
    is_image = len(shape) == 3
    need = "need points of 1 or 2 entries; ask for --what score_field, which looks along two principal directions, "
    instead = "--what denoising, or --mode evaluate --metric nll" if is_image else "or --mode evaluate --metric nll"
    require(
        len(shape) == 1 and shape[0] <= 2,
        f"what='density': this model makes {'images' if is_image else 'samples'} of "
        f"{'x'.join(map(str, shape))}, and a density is drawn over the plane: {need}{instead}",
    )
    subject = subject.of_one_class()
    plane = Plane(subject.train)
    model = subject.model
    clean = Level.clean(model.dtype)[0]
    grid = plane.grid(POINTS if shape[0] == 2 else POINTS_OF_A_LINE, clean)
    x = plane.points(grid, clean.alpha).to(model.device, model.dtype)
    count = EVALUATIONS if options.num_steps is None else options.num_steps
    size = subject.batch_size(graphs=1)
    with Progress("density", -(-len(x) // size) * count, unit="evaluations") as progress:
        found = log_prob(
            model,
            x,
            subject.labels(len(x)),
            num_evaluations=count,
            batch_size=size,
            on_evaluation=progress.advance,
        )
    learned = found.log_prob.cpu()
    width = BANDWIDTH * subject.train.std() * isinstance(subject.truth, EmpiricalDistribution)
    one = torch.ones(()).to(x)
    sigma = torch.tensor(width).to(x)
    true = in_chunks(lambda points, _: subject.exact.target.log_prob(points, one, sigma), x, subject.batch_size())
    name = "exact" if width == 0 else f"kernels on the data, width {width:.2g}"
    cell = (grid[1, 1] - grid[0, 0]).prod() if shape[0] == 2 else grid[1, 0] - grid[0, 0]
    mass = learned.exp().sum() * cell
    gap = ((learned - true).abs() * true.softmax(0)).sum()
    print(f"mass of the model on the grid: {mass:.3f}; mean difference from the {name.split()[0]}: {gap:.3g} nats")
    of_model = f"{subject.name}, by its flow"
    panels = [part.reshape(grid.shape[:-1]) for part in (learned, true)]
    return plots.densities(grid, panels, [of_model, name], "difference")

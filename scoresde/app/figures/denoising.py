"""From data to noise and back: x_t, what the denoiser makes of it, samples by class, and their nearest neighbours.

A state is shown divided by sqrt(alpha^2 + sigma^2), on the scale of the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samplers import TableSampler, Trajectory, sample
from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Plane, Subject, in_chunks
from scoresde.errors import require
from scoresde.sde import Level
from sde_configs import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = torch.logspace(0.8, -1.2, 10)  # sigma / alpha, for data of about unit deviation
LEVELS_OF_POINTS = torch.logspace(0.8, -1.2, 6)
SAMPLER = "ancestral"
STEPS = 60
WAYS = 2
ROWS = 4
COLUMNS = 10
POINTS = 600
ROW_NAMES = ("$x_t$", "$\\hat{x}_0$")
FRAMES = 16


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Images as strips of pixels, other data as clouds of points."""
    return _of_images(subject, options) if len(subject.train.shape) == 3 else _of_points(subject, options)


def frames(subject: Subject, options: FigureOptions) -> list[Figure]:
    """The way from noise to data: x_t beside what the denoiser makes of it."""
    images = len(subject.train.shape) == 3
    plane = Plane(subject.train)
    way, _ = _way(subject, options, COLUMNS if images else POINTS)
    levels = torch.logspace(LEVELS[0].log10(), LEVELS[-1].log10(), FRAMES)
    drawn = []
    for k in _nearest_rows(subject, way, levels):
        level = subject.sde.level(way.t[k].double())
        title = f"$\\sigma/\\alpha$ = {level.noise_level.item():.2f}"
        scale = _scale(level)
        if images:
            pair = torch.stack([_shown(subject, way.x_t[k] / scale.item()), _shown(subject, way.x0_hat[k])])
            drawn.append(plots.image_strips([plots.Strip(title, pair, ROW_NAMES)], 6.0))
        else:
            x_t = plane.coordinates(way.x_t[k] / scale.item(), level.alpha / scale)
            clouds = [x_t, plane.coordinates(way.x0_hat[k], torch.ones(()))]
            drawn.append(plots.point_strips([clouds], [title], list(ROW_NAMES)))
    return drawn


def _of_images(subject: Subject, options: FigureOptions) -> Figure:
    count = ROWS * COLUMNS if options.num_samples is None else options.num_samples
    require(count >= 1, f"num_samples={count}: need at least 1")
    ways = min(WAYS, count)
    forward, columns = _forward(subject, ways, options.seed)
    note = "noise level $\\sigma/\\alpha$ (data units)"
    way, _ = _way(subject, options, ways)
    x = _drawn(subject, options, count, None)
    rows = _nearest_rows(subject, way, LEVELS)
    scale = _scale(subject.sde.level(way.t[rows].double())).float().reshape(-1, 1, 1, 1, 1)
    pairs = torch.stack([way.x_t[rows] / scale, way.x0_hat[rows]], 2)
    reverse = _shown(subject, pairs.permute(1, 2, 0, 3, 4, 5).flatten(0, 1))
    by_class, classes = _by_class(subject, options, x)
    shown = min(COLUMNS, count)
    nearest, distances = _nearest(subject, x[:shown])
    both = torch.stack([_shown(subject, x[:shown]), nearest])
    estimates = f"from noise: the state above what the denoiser makes of it ({subject.name})"
    far = [f"{d:.2g}" for d in distances.tolist()]
    entry = "root mean square distance of an entry (data units)"
    neighbours = "samples above their nearest training samples"
    return plots.image_strips(
        [
            plots.Strip("training samples on their way to noise", forward.flip(1), (), columns[::-1], note),
            plots.Strip(estimates, reverse, ROW_NAMES * ways, columns, note),
            plots.Strip("samples by class" if classes else "samples", by_class, (), classes),
            plots.Strip(neighbours, both, ("sample", "nearest"), far, entry),
        ]
    )


def _forward(subject: Subject, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Training images at each level, from the noisiest, `(count, levels, C, H, W)`, and the levels in words."""
    level = subject.levels(LEVELS)
    x_0 = subject.train.batch(torch.arange(count) % len(subject.train))[0][:, None]
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))  # the same noise at every level
    alpha, sigma, scale = (part.float().reshape(-1, 1, 1, 1) for part in (level.alpha, level.sigma, _scale(level)))
    columns = [f"{value:.2g}" for value in level.noise_level.tolist()]
    return _shown(subject, (alpha * x_0 + sigma * eps) / scale), columns


def _scale(level: Level) -> Tensor:
    return (level.alpha**2 + level.sigma**2).sqrt()


def _of_points(subject: Subject, options: FigureOptions) -> Figure:
    count = POINTS if options.num_samples is None else options.num_samples
    require(count >= 1, f"num_samples={count}: need at least 1")
    plane = Plane(subject.train)
    level = subject.levels(LEVELS_OF_POINTS)
    way, _ = _way(subject, options, count)
    rows = _nearest_rows(subject, way, LEVELS_OF_POINTS)
    index = torch.arange(count) % len(subject.train)
    x_0 = subject.train.batch(index)[0].flatten(1)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(options.seed))
    forward = []
    states = []
    estimates = []
    for k, row in enumerate(rows):
        at = level[k]
        reached = subject.sde.level(way.t[row].double())
        scale = _scale(at)
        x_t = at.alpha.item() * x_0 + at.sigma.item() * eps
        forward.append(plane.coordinates(x_t / scale.item(), at.alpha / scale))
        states.append(plane.coordinates(way.x_t[row] / _scale(reached).item(), reached.alpha / _scale(reached)))
        estimates.append(plane.coordinates(way.x0_hat[row], torch.ones(())))
    columns = [f"$\\sigma/\\alpha$ = {value:.2g}" for value in level.noise_level.tolist()]
    names = ("forward $x_t$", f"{subject.name} $x_t$", "$\\hat{x}_0$")
    return plots.point_strips([forward, states, estimates], names, columns)


def _way(subject: Subject, options: FigureOptions, count: int) -> tuple[Trajectory, Tensor]:
    """The states on the way from noise, and the samples, on the host."""
    kept = Trajectory()
    return kept, _drawn(subject, options, count, kept)


def _drawn(subject: Subject, options: FigureOptions, count: int, callback: Trajectory | None) -> Tensor:
    """Samples, on the host; a callback sees the states on the way."""
    steps = STEPS if options.num_steps is None else options.num_steps
    name = options.sampler or SAMPLER
    sampler = build.build_sampler(subject.config, name, options.num_steps)
    grid = sampler.grid(subject.model, steps) if isinstance(sampler, TableSampler) else None
    x, _ = sample(
        subject.model,
        sampler,
        count,
        grid=grid,
        cond=subject.labels(count),
        seed=options.seed,
        batch_size=subject.batch_size(),
        callback=callback,
    )
    return x.cpu()


def _nearest_rows(subject: Subject, way: Trajectory, noise_levels: Tensor) -> Tensor:
    """The evaluations whose noise levels are nearest to those asked for."""
    log_snr = subject.sde.log_snr(way.t.double())
    return ((log_snr + 2 * noise_levels[:, None].double().log()).abs()).argmin(1)


def _shown(subject: Subject, x: Tensor) -> Tensor:
    """Images in the model's units as values from 0 to 1; of other than 1 or 3 channels the first."""
    raw = subject.shown(x)
    return raw[..., : 3 if raw.shape[-3] >= 3 else 1, :, :]


def _by_class(subject: Subject, options: FigureOptions, x: Tensor) -> tuple[Tensor, list[str]]:
    """Samples `(rows, columns, C, H, W)`, a column for each class where there are several, and their names.

    An exact score knows no classes: each column is then drawn from that of the class's points.
    """
    classes = subject.num_classes if subject.label is None else 0
    columns = classes if 1 < classes <= 20 else min(COLUMNS, len(x))
    rows = max(1, len(x) // columns)
    columns = min(columns, len(x))
    if classes and not subject.learned:
        drawn = [_drawn(subject.of_class(k), options, rows, None) for k in range(columns)]
        x = torch.stack(drawn, 1).flatten(0, 1)
    names = [plots.literal(name) for name in subject.train.class_names] or [str(k) for k in range(columns)]
    return _shown(subject, x[: rows * columns]).unflatten(0, (rows, columns)), names[:columns] if classes else []


def _nearest(subject: Subject, x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest training samples, as they are shown, and their RMS distances."""
    data = subject.train.all()[0]
    flat = x.flatten(1)
    distances = in_chunks(lambda part, _: torch.cdist(flat, part.flatten(1)).T, data, subject.batch_size())
    least, index = distances.min(0)
    return _shown(subject, data[index]), least / flat.shape[1] ** 0.5

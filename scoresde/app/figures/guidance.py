r"""What guidance draws, by weight and way of drawing, and the noise levels at which it acts.

Guidance multiplies the difference of two estimates. If these are D(x, y) and D(x), with a class and without, it says
what x_t tells of the class. By the identity of information and estimation (Guo, Shamai and Verdu 2005), with r the
noise level sigma / alpha,

    I(y; x_t) = int_r^inf E |D(x, y) - D(x)|^2 / s^2 dlog s,

and for exact estimates E |D(x, y) - D(x)|^2 = E |x_0 - D(x)|^2 - E |x_0 - D(x, y)|^2, the error that the class saves.
The class is decided at the noise levels where I rises from 0 to the entropy of y. Two faults of a network show. Where
the two integrals part, the difference is made of errors that save nothing, and guidance multiplies them. What is saved
beyond the entropy comes from an estimate without class that is worse than it could be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from samplers import DDIM, Ancestral, Sampler, pilot_corrector, sample, sample_particles
from scoresde import condition, plots
from scoresde._batches import batches
from scoresde.app.figures.subject import FigureOptions, Plane, Subject
from scoresde.app.guiding import Guiding
from scoresde.app.piloted import LOWEST
from scoresde.data import ArrayData
from scoresde.errors import require
from scoresde.guidance import ClassifierFreeGuidance, Linear
from scoresde.guidance.weighed import WeighedModel
from scoresde.metrics import PoweredTarget
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import Level
from sde_configs import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = (1.0, 2.0, 4.0)
WEIGHTS_OF_IMAGES = (1.0, 1.5, 2.0, 4.0)
WEIGHTS_OF_CLASSIFIERS = (0.0, 2.0, 4.0, 8.0)
NUM_SAMPLES = 2000
EVALUATIONS = 200  # of the guided model, for each way of drawing points
CORRECTIONS = 4
SAMPLER = "heun"  # of images
SAMPLER_BY_CLASSIFIERS = "ancestral"  # noise on the way forgives errors of a classifier's gradient
ROWS = 10  # classes of images that are shown
COLUMNS = 4
NOISE_LEVELS = torch.logspace(-2, 1.5, 24)  # sigma / alpha, for data of about unit deviation
MOST = 1000  # points whose differences are averaged
MOST_IMAGES = 200
CELLS = 401  # of the target's grid, along an axis
SHOWN = 4  # each of these many is drawn

Way = Callable[[ScoreModel, int | None], tuple[Tensor, int]]  # of a model and a class to samples and evaluations


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Images as a grid for each weight, points as a panel for each weight and way of drawing."""
    count = options.num_samples
    require(count is None or count >= 1, f"num_samples={count}: need at least 1")
    require(
        not subject.captioned,
        "what='guidance': is of classes, and this model was trained with captions; --mode sample --prompt TEXT "
        "--guidance W shows what guidance makes of one",
    )
    require(
        subject.learned or subject.exact_labelled is not None,
        f"data={subject.config.data.path or subject.config.data.name!r}: without a run guidance is shown of blobs, "
        "whose scores are known for each class; name a run with --workdir",
    )
    if len(subject.train.shape) == 3:
        return _of_images(subject, options)
    require(
        math.prod(subject.train.shape) > 1,
        "what='guidance': this model makes single numbers; need points of two or more entries, or images",
    )
    return _of_points(subject, options)


class Gains(NamedTuple):
    """What a condition changes of an estimate at levels `(n,)`, summed over entries, the mean over noisy samples.

    Attributes:
        difference: |D(x, y) - D(x)|^2.
        saved: |x_0 - D(x)|^2 - |x_0 - D(x, y)|^2, the same for exact estimates.
    """

    difference: Tensor
    saved: Tensor


def gains(without: ScoreModel, given: ScoreModel, data: ArrayData, level: Level, size: int) -> Gains:
    """Compares two models on noisy samples, each with its own condition.

    Args:
        without, given: the models; both are called with the conditions.
        data: the samples; the same noises are added to them at every level.
        level: the levels.
        size: samples at a time.
    """
    total = torch.zeros(2, len(level), dtype=torch.float64)
    with torch.no_grad(), without.eval_mode(), given.eval_mode():
        for part in batches(len(data), size):
            x_0, cond = data.batch(part)
            x_0 = x_0.to(given.device, given.dtype)
            cond = condition.to(cond, given.device)
            eps = Noise(0, torch.arange(part.start, part.stop, device=x_0.device)).normal(0, given.shape, given.dtype)
            for k in range(len(level)):
                at = level[k].to(given.device, given.dtype)
                x_t = at.alpha * x_0 + at.sigma * eps
                first, second = (model.denoise_at(x_t, at, cond) for model in (without, given))
                sizes = [part.double().square().sum() for part in (second - first, x_0 - first, x_0 - second)]
                total[0, k] += sizes[0].cpu()
                total[1, k] += (sizes[1] - sizes[2]).cpu()
    return Gains(*(total / len(data)))


def information(noise_levels: Tensor, squares: Tensor) -> Tensor:
    """I(y; x_t) in nats at rising noise levels `(n,)`, from E |D(x, y) - D(x)|^2 at each of them.

    Above the largest of them it is taken to be constant.
    """
    rate = (squares / noise_levels.square()).flip(0)
    steps = (rate[1:] + rate[:-1]) / 2 * noise_levels.log().flip(0).diff().abs()
    return (rate[0] / 2 + torch.cat([rate.new_zeros(1), steps.cumsum(0)])).flip(0)


def _of_points(subject: Subject, options: FigureOptions) -> Figure:
    """A row for each weight, a column for each way, over the target if it is known and otherwise over data."""
    exact = subject.exact_labelled if _guiding(subject).other is None else None
    label = _label(subject)
    count = NUM_SAMPLES if options.num_samples is None else options.num_samples
    ways = _ways(subject, options, count)
    plane = Plane(subject.train)
    one = torch.ones(())
    data = subject.train if subject.label is not None or label is None else _of_label(subject.train, label)
    behind = plots.Ground(plane.coordinates(data.batch(slice(count))[0], one))
    rows = []
    if exact is not None:
        print("distance to the target, over that of two sets of its own draws", flush=True)
    for w in _weights(subject, options, WEIGHTS):
        found = {name: way(_guided(subject, w), label) for name, way in ways.items()}
        clouds = [plane.coordinates(x, one) for x, _ in found.values()]
        row = plots.GuidedRow(f"w = {w:g}", behind, clouds, [""] * len(clouds))
        if exact is not None and label is not None:
            target = PoweredTarget(exact, label, w, count, points=CELLS)
            distances = {name: target.distance(x) for name, (x, _) in found.items()}
            print(f"w = {w:g}: {', '.join(f'{name} {d:.2f}' for name, d in distances.items())}", flush=True)
            row = _over_target(row, target, list(distances.values()))
        rows.append(row)
    columns = [f"{name}\n{nfe} evaluations" for name, (_, nfe) in found.items()]  # of the last weight, which is not off
    title = "over data of the class" if label is not None else "over data"
    if len(rows[0].clouds) > len(ways):
        columns = ["draws of the\ntarget", *columns]
        title = "over $p(x)^{1-w}\\, p(x\\,|\\,y)^w$, with the distance from it, that of its own draws being 1"
    return plots.guided_points(rows, columns, _by_level(subject), plane.names, f"samples {title}")


def _over_target(row: plots.GuidedRow, target: PoweredTarget, distances: list[float]) -> plots.GuidedRow:
    """A row over the density of the target, with its own draws before the others, and the distances as notes."""
    axis = target.axis[::SHOWN]
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    ground = plots.Ground(grid, target.log_prob[::SHOWN, ::SHOWN].T)
    notes = ["1", *(f"{d:.1f}" for d in distances)]
    return plots.GuidedRow(row.title, ground, [target.samples.float(), *row.clouds], notes)


def _ways(subject: Subject, options: FigureOptions, count: int) -> dict[str, Way]:
    """How points are drawn: by the sampler that is asked for, or by several that cost as much as each other."""
    size = subject.batch_size()

    def way(sampler: Sampler, grid: Callable[[ScoreModel], Tensor]) -> Way:
        def drawn(model: ScoreModel, label: int | None) -> tuple[Tensor, int]:
            found = sample(model, sampler, count, grid=grid(model), cond=label, seed=options.seed, batch_size=size)
            return found.x, found.nfe

        return drawn

    def corrected(model: ScoreModel, label: int | None) -> tuple[Tensor, int]:
        lowest = LOWEST if subject.learned else 0.0
        sampler = pilot_corrector(model, label, few, CORRECTIONS, batch_size=size, lowest=lowest)
        return way(sampler, lambda model: sampler.grid(model, few))(model, label)

    def particles(model: ScoreModel, label: int | None) -> tuple[Tensor, int]:
        assert isinstance(model, WeighedModel)
        found = sample_particles(model, 1, count, num_steps=steps, cond=label, seed=options.seed, batch_size=size)
        return found.x[0], found.nfe

    name = options.sampler
    if name is not None:
        sampler = build.build_sampler(subject.config, name, options.num_steps)
        return {name: way(sampler, lambda model: sampler.grid(model, options.num_steps))}
    steps = EVALUATIONS if options.num_steps is None else options.num_steps
    few = steps // (1 + CORRECTIONS)
    require(few >= 4, f"num_steps={steps}: need at least {4 * (1 + CORRECTIONS)}")
    ways = {
        "reverse SDE": way(Ancestral(), lambda model: Ancestral().grid(model, steps)),
        "flow": way(DDIM(), lambda model: DDIM().grid(model, steps)),
        "predictor-corrector": corrected,
    }
    guiding = _guiding(subject)
    if not subject.learned and guiding.interval is None and guiding.rule.linear:  # else their weights are not known
        ways["particles"] = particles
    return ways


def _of_images(subject: Subject, options: FigureOptions) -> Figure:
    """A grid for each weight, of the same classes and noises."""
    assert subject.trained is not None
    in_turn = subject.trained.conditions(ROWS)
    classes = in_turn.unique().tolist() if isinstance(in_turn, Tensor) else []
    classes = classes if subject.label is None else [subject.label]
    rows = len(classes) if len(classes) > 1 else COLUMNS
    count = rows * COLUMNS if options.num_samples is None else options.num_samples
    rows = min(rows, count)
    columns = count // rows
    cond = None
    if classes:
        each = classes[:rows] if len(classes) > 1 else classes * rows
        cond = torch.tensor(each).repeat_interleave(columns)
    usual = SAMPLER_BY_CLASSIFIERS if _guiding(subject).by_classifier else SAMPLER
    sampler = build.build_sampler(subject.config, options.sampler or usual, options.num_steps)
    weights = _weights(subject, options, WEIGHTS_OF_IMAGES)
    grids = []
    for w in weights:
        model = _guided(subject, w)
        x, _ = sample(
            model,
            sampler,
            rows * columns,
            grid=sampler.grid(model, options.num_steps),
            cond=cond,
            seed=options.seed,
            batch_size=subject.batch_size(),
        )
        shown = subject.shown(x)
        grids.append(shown[:, : 3 if shown.shape[1] >= 3 else 1].unflatten(0, (rows, columns)))
    known = [plots.literal(name) for name in subject.info.class_names]
    names = [known[k] if known else str(k) for k in classes[:rows]] if len(classes) > 1 else []
    return plots.guided_images([f"w = {w:g}" for w in weights], grids, names, _by_level(subject))


def _weights(subject: Subject, options: FigureOptions, usual: tuple[float, ...]) -> tuple[float, ...]:
    """The weights that are shown: those of the picture, or none and the one that is asked for."""
    off = _guiding(subject).off
    asked = options.guidance
    if asked is None:
        return WEIGHTS_OF_CLASSIFIERS if _guiding(subject).by_classifier else usual
    require(asked != off, f"guidance={asked:g}: is no guidance, which is shown anyway; give another weight")
    return (off, asked)


def _guided(subject: Subject, w: float) -> ScoreModel:
    """The model under a weight."""
    guiding = _guiding(subject)
    if subject.trained is not None:
        return subject.trained.guided_by(replace(guiding, scale=w))
    exact = subject.exact_labelled
    assert exact is not None
    return ClassifierFreeGuidance(exact, w, guiding.interval, guiding.rule)


def _guiding(subject: Subject) -> Guiding:
    """How the model is guided."""
    assert subject.guiding is not None
    return subject.guiding


def _label(subject: Subject) -> int | None:
    """The class of points: the one that is asked for, or the first; None if there are none."""
    if subject.label is not None:
        return subject.label
    count = _num_classes(subject)
    if count == 0:
        return None
    print(f"class 0 of {count}; --labels chooses another", flush=True)
    return 0


def _num_classes(subject: Subject) -> int:
    """How many classes the guided model can be asked for."""
    known = _guiding(subject).classes
    return subject.num_classes or (known.num_classes if known is not None else 0)


def _of_label(data: ArrayData, label: int) -> ArrayData:
    """The samples of a class, or all if none are labelled."""
    return data if data.labels is None else data.select(torch.nonzero(data.labels == label).flatten())


def _by_level(subject: Subject) -> plots.ByLevel | None:
    """Where guidance acts; None if the classes of the data are not known."""
    guiding = _guiding(subject)
    data = subject.held_out or subject.train
    data = data.select(torch.arange(min(len(data), MOST_IMAGES if len(data.shape) == 3 else MOST)))
    classes = _num_classes(subject)
    if classes and data.labels is None:
        print("the data of this run are read without labels, and where guidance acts is not shown", flush=True)
        return None
    data = data if classes else replace(data, cond=None)
    level = subject.levels(NOISE_LEVELS)
    plain = replace(subject, guiding=replace(guiding, interval=None, rule=Linear()))
    name = "learned" if subject.learned else "exact"
    models = {name: [_guided(plain, w) for w in (0, 1)]}  # the reference alone, and the difference once
    exact = subject.exact_labelled
    if exact is not None and guiding.other is None:
        models["exact"] = [ClassifierFreeGuidance(exact, w) for w in (0, 1)]
    size = subject.batch_size()
    found = {name: gains(without, given, data, level, size) for name, (without, given) in models.items()}
    differences = {name: (each.difference / math.prod(data.shape)).sqrt() for name, each in found.items()}
    if data.labels is None or not (guiding.other is None or guiding.by_classifier):
        return plots.ByLevel(level.noise_level, differences, {}, None, guiding.interval)
    told = {}
    if subject.learned:
        told["learned, by errors that the class saves"] = information(level.noise_level, found["learned"].saved)
        told["learned, by the difference"] = information(level.noise_level, found["learned"].difference)
    if "exact" in found:
        told["exact"] = information(level.noise_level, found["exact"].difference)
    shares = torch.bincount(data.labels).double() / len(data)
    entropy = -torch.special.xlogy(shares, shares).sum().item() if (shares < 1).all() else None
    return plots.ByLevel(level.noise_level, differences, told, entropy, guiding.interval)

"""How training went: loss, gradient norm, the error at each noise level, and samples on the way.

Of all data of a covariance C a Gaussian is the hardest to denoise, and there the best denoiser is known:

    E |x_0 - D|^2 = tr(C sigma^2 (alpha^2 C + sigma^2 I)^{-1}).

A model above this curve is worse than one matrix; below it, it has learned what is not Gaussian in the data.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samplers import Heun, sample
from scoresde import checkpoint, condition, plots
from scoresde._batches import LARGE, batches
from scoresde.app.figures.subject import FigureOptions, Plane, Subject, averaged, trainer_of
from scoresde.app.progress import Progress
from scoresde.data import ArrayData
from scoresde.errors import UsageError, require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NOISE_LEVELS = torch.logspace(-1.5, 1, 16)  # sigma / alpha, for data of about unit deviation
SPREAD_OF = 2000  # samples that a covariance is taken from
MOST = 500  # samples that an error is averaged over
LINES = 50
FRAMES = 12
NUM_SAMPLES = 400
STEPS = 20
FIELDS = ("step", "loss", "grad_norm", "held_out_loss")


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Loss and gradient norm of a run, or of a short one made now, and the error at each noise level."""
    if subject.learned:
        model = subject.model
        records = _records(subject)
    else:
        records, models = _train_now(subject, 1)
        model = models[-1]
    level = subject.levels(NOISE_LEVELS)
    data = subject.held_out or subject.train
    size = subject.batch_size()
    takes_cond = subject.num_classes > 0 or subject.captioned
    errors = {"learned": _errors(model, data, level, takes_cond, options.seed, size)}
    if subject.closed_form:
        errors["exact"] = _errors(subject.exact, data, level, False, options.seed, size)
    errors["best of a Gaussian"] = gaussian_error(subject.train, level)
    return plots.training(records, level.noise_level, errors)


def frames(subject: Subject, options: FigureOptions) -> list[Figure] | list[Image]:
    """Samples of one noise through training: of the checkpoints that are kept, or of a short run made now."""
    models = _kept(subject) if subject.learned else _train_now(subject, FRAMES)[1]
    count = (
        (40 if len(subject.train.shape) == 3 else NUM_SAMPLES) if options.num_samples is None else options.num_samples
    )
    require(count >= 1, f"num_samples={count}: need at least 1")
    labels = replace(subject, learned=True).labels(count)
    size = subject.batch_size()
    drawn = []
    for model in models:
        x, _ = sample(model, Heun(), count, num_steps=STEPS, cond=labels, seed=options.seed, batch_size=size)
        drawn.append(x.cpu())
    if len(subject.train.shape) == 3:
        shown = [subject.shown(x) for x in drawn]
        return [plots.image_grid(x[:, : 3 if x.shape[1] >= 3 else 1], subject.num_classes or 10) for x in shown]
    plane = Plane(subject.train)
    real = plane.coordinates(subject.train.batch(torch.arange(min(count, len(subject.train))))[0], torch.ones(()))
    clouds = [plane.coordinates(x, torch.ones(())) for x in drawn]
    limit = 1.3 * plane.extent
    middle = plane.middle
    inside = [c.clamp(middle - limit, middle + limit) for c in clouds]  # points that are lost stay at the edge
    return [
        plots.point_strips([[real, c]], [""], ["data", f"samples, {k + 1} of {len(inside)}"])
        for k, c in enumerate(inside)
    ]


def gaussian_error(data: ArrayData, level: Level) -> Tensor:
    """tr(C sigma^2 (alpha^2 C + sigma^2 I)^-1) / dim at each level, C the data's covariance.

    It is a sum over the eigenvalues of C. They are those of at most 2000 samples.
    """
    found = _variances(data)
    dim = math.prod(data.codec.encoded_shape(data.shape))
    variances = torch.cat([found, found.new_zeros(dim - len(found))])
    alpha = level.alpha[:, None]
    sigma = level.sigma[:, None]
    return (variances * sigma**2 / (alpha**2 * variances + sigma**2)).mean(1)


def _variances(data: ArrayData) -> Tensor:
    """The eigenvalues of the covariance that may differ from 0, of samples that are taken a block at a time.

    They are those of the products of entries, `(dim, dim)`, or of samples, `(count, count)`, whichever are fewer.
    """
    count = min(len(data), SPREAD_OF)
    dim = math.prod(data.codec.encoded_shape(data.shape))
    parts = list(batches(count, max(1, LARGE // dim)))

    def samples(part: slice) -> Tensor:
        return data.batch(part, torch.float64)[0].flatten(1)

    mean = torch.stack([samples(part).sum(0) for part in parts]).sum(0) / count
    if dim <= count:
        products = torch.zeros(dim, dim, dtype=torch.float64)
        for part in parts:
            centred = samples(part) - mean
            products += centred.T @ centred
    else:
        products = torch.zeros(count, count, dtype=torch.float64)
        for one in parts:
            centred = samples(one) - mean
            for other in parts[: parts.index(one) + 1]:
                products[one, other] = centred @ (samples(other) - mean).T  # eigvalsh reads the lower triangle
    return torch.linalg.eigvalsh(products).clamp(min=0) / count


@torch.no_grad()
def _errors(model: ScoreModel, data: ArrayData, level: Level, takes_cond: bool, seed: int, batch_size: int) -> Tensor:
    """The mean of |D - x_0|^2 / dim over held-out samples at each level, the same noises at all of them."""
    count = min(MOST, len(data))
    times = level.t.to(model.device, model.dtype)
    total = torch.zeros(len(times), dtype=torch.float64)
    with model.eval_mode():
        for part in batches(count, batch_size):
            x_0, cond = data.batch(part)
            x_0 = x_0.to(model.device, model.dtype)
            cond = condition.to(cond, model.device) if takes_cond else None
            noise = Noise(seed, torch.arange(part.start, part.stop, device=x_0.device))
            eps = noise.normal(0, model.shape, model.dtype)
            for k, t in enumerate(times.unbind()):
                x0_hat = model.denoise(model.sde.diffuse(x_0, t, eps), t, cond)
                total[k] += (x0_hat - x_0).double().square().flatten(1).mean(1).sum().cpu()
    return total / count


def _records(subject: Subject) -> dict[str, list[float | None]]:
    """The columns of a run's metrics.jsonl."""
    assert subject.trained is not None
    run = subject.trained.run
    if run is None:
        raise UsageError(
            f"checkpoint={str(subject.trained.checkpoint.path)!r}: lies in no run; name one with --workdir"
        )
    path = run.metrics
    require(path.exists(), f"workdir={str(run.path)!r}: there is no {path.name}; ask for another run")
    lines = run.records(path)
    require(bool(lines), f"workdir={str(run.path)!r}: {path.name} is empty; train longer")
    return {name: [line.get(name) for line in lines] for name in FIELDS}


def _kept(subject: Subject) -> list[ScoreModel]:
    """The models of all checkpoints of a run, oldest first."""
    run = subject.trained.run if subject.trained is not None else None
    kept = [] if run is None else run.all_checkpoints()
    return [checkpoint.load(path).model().to(subject.model.device) for path in kept] or [subject.model]


def _train_now(subject: Subject, count: int) -> tuple[dict[str, list[Any]], list[ScoreModel]]:
    """A short training: its metrics, and the averaged model at `count` steps, more of them early, the last included."""
    require(subject.config.training.num_steps >= 1, "config.training.num_steps=0: need at least 1")
    trainer = trainer_of(subject, subject.model.device)
    total = trainer.options.num_steps
    kept_at = {math.ceil(total * ((k + 1) / count) ** 2) for k in range(count)}
    records: dict[str, list[Any]] = {name: [] for name in FIELDS}
    models: list[ScoreModel] = []
    with Progress("train", total) as progress:
        while trainer.step_number < total:
            trainer.step()
            step = trainer.step_number
            if step % max(1, total // LINES) == 0 or step == total:
                metrics: dict[str, Any] = trainer.pop_metrics()
                if subject.held_out is not None and (step % max(1, total // 5) == 0 or step == total):
                    metrics["held_out_loss"] = trainer.held_out_loss(subject.held_out)
                for name in FIELDS:
                    records[name].append(metrics.get(name))
            if step in kept_at:
                models.append(averaged(trainer))
            progress.update(step)
    return records, models

"""How training went: loss, gradient norm, the error at each noise level, and samples on the way.

Of all data of a covariance C a Gaussian is the hardest to denoise, and there the best denoiser is known:

    E |x_0 - D|^2 = tr(C sigma^2 (alpha^2 C + sigma^2 I)^{-1}).

A model above this curve is worse than one matrix; below it, it has learned what is not Gaussian in the data.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from samplers import Heun, sample
from scoresde import checkpoint, condition, plots
from scoresde.app.figures.subject import FigureOptions, Plane, Subject, averaged, in_chunks, trainer_of
from scoresde.app.progress import Progress
from scoresde.condition import Condition
from scoresde.data import ArrayData
from scoresde.errors import UsageError, require
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
    errors = {"learned": _errors(model, data, level, bool(subject.num_classes), options.seed)}
    if subject.closed_form:
        errors["exact"] = _errors(subject.exact, data, level, False, options.seed)
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
    drawn = []
    for model in models:
        x, _ = sample(model, Heun(), count, num_steps=STEPS, cond=labels, seed=options.seed)
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
    x = data.batch(torch.arange(min(len(data), SPREAD_OF)), torch.float64)[0].flatten(1)
    found = torch.linalg.svdvals(x - x.mean(0)) ** 2 / len(x)
    variances = torch.cat([found, found.new_zeros(x.shape[1] - len(found))])
    alpha = level.alpha[:, None]
    sigma = level.sigma[:, None]
    return (variances * sigma**2 / (alpha**2 * variances + sigma**2)).mean(1)


@torch.no_grad()
def _errors(model: ScoreModel, data: ArrayData, level: Level, takes_cond: bool, seed: int) -> Tensor:
    """The mean of |D - x_0|^2 / dim over held-out samples at each level, the same noises at all of them."""
    x_0, cond = data.batch(slice(MOST))
    x_0 = x_0.to(model.device, model.dtype)
    cond = condition.to(cond, model.device) if takes_cond else None
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(x_0)
    found = []
    with model.eval_mode():
        for t in level.t.to(x_0).unbind():
            x_t = model.sde.diffuse(x_0, t, eps)
            x0_hat = in_chunks(partial(_denoised, model, t), x_t, cond)
            found.append((x0_hat - x_0.cpu()).square().mean())
    return torch.stack(found)


def _denoised(model: ScoreModel, t: Tensor, x_t: Tensor, cond: Condition) -> Tensor:
    return model.denoise(x_t, t, cond)


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

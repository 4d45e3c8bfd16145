"""`--mode solve`: posterior samples of what was measured in part, and how far they can be trusted."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samplers.base import Samples
from scoresde import condition
from scoresde._batches import batches
from scoresde.app.calibration import calibrate, choose_method, simulate
from scoresde.app.device import choose_threads
from scoresde.app.drawing import read_prompts
from scoresde.app.files import output_path
from scoresde.app.flags import SolveFlags
from scoresde.app.methods import Solver
from scoresde.app.pictures import save_numbers
from scoresde.app.posterior_picture import save_posteriors
from scoresde.app.progress import Progress
from scoresde.app.shards import SampleShards
from scoresde.app.tasks import Problems, Task, build_task, read_measured, task_key
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.checkpoint import digest
from scoresde.condition import Condition
from scoresde.data.arrays import ArrayData
from scoresde.data.toys import known_mixture
from scoresde.errors import UsageError, require
from scoresde.metrics import sliced_wasserstein
from scoresde.operators import LinearOperator
from scoresde.targets import GaussianMixture
from sde_configs import build


def solve(flags: SolveFlags, overrides: Sequence[str]) -> int:
    """Draws from the posteriors of measurements; writes a picture and an .npz; returns the exit status.

    A batch of measurements is kept on disk once it is drawn: the same command goes on after a kill.
    """
    trained = Trained.of(flags, overrides)
    for name, value, least in (
        ("num_samples", flags.num_samples, 1),
        ("draws", flags.draws, 2),
        ("cases", flags.cases, 0),
    ):
        require(value >= least, f"{name}={value}: need at least {least}")
    task = build_task(trained, flags)
    output = output_path(flags.output, trained.folder / f"{flags.task}-{flags.method}.png", ".npz")
    problems = _problems(task, flags)
    held_out, why = _held_out(trained)
    choose_threads(trained.batch_size(graphs=1) * math.prod(trained.model.shape))
    name = flags.method
    if name == build.AUTO:
        name = choose_method(task, flags, held_out)
    solver = Solver.of(task, flags, name)
    print(f"{flags.task}: {task.of_samples}, {task.noise}, {problems.source}", flush=True)
    shards = SampleShards(output, _settings(trained, flags, solver, problems))
    with shards.locked():
        drawn = _drawn(flags, trained.seed, solver, problems, shards)
        _finish(task, flags, solver, problems, drawn, (held_out, why), output)
        shards.remove()  # what is drawn is written, so nothing is lost
    return 0


def _finish(
    task: Task,
    flags: SolveFlags,
    solver: Solver,
    problems: Problems,
    drawn: Samples,
    held_out: tuple[ArrayData | None, str],
    output: Path,
) -> None:
    """Says what was found, and writes it."""
    cases, why = held_out
    x = task.data_of(drawn.x)
    print(f"{drawn.x.shape[1]} samples of each posterior by {solver.name}, {drawn.nfe} network evaluations each")
    _report(task, flags, problems, x)
    calibration = None
    if cases is not None and flags.cases > 0:
        calibration = calibrate(task, flags, solver, cases)
    print(f"calibration: {why}" if calibration is None else "\n".join(calibration.lines()))
    save_posteriors(output, task, problems, x)
    numbers = output.with_suffix(".npz")
    raw = task.decode(x)
    known = {} if problems.truth is None else {"truth": task.decode(problems.truth)}
    save_numbers(numbers, measurement=problems.y, samples=raw, mean=raw.mean(1), deviation=raw.float().std(1), **known)
    print(f"picture: {output}\nnumbers: {numbers}")


def _problems(task: Task, flags: SolveFlags) -> Problems:
    """The measurements: those of a file, or simulated ones of clean samples."""
    trained = task.trained
    require(
        flags.input is None or flags.measured is None,
        f"input={flags.input!r}, measured={flags.measured!r}: give clean samples or measurements, not both",
    )
    if flags.measured is not None:
        y = read_measured(task, flags)[: flags.num_samples]
        return Problems(y, _conditions(trained, flags, len(y)), None, f"{len(y)} of {flags.measured}")
    data, source = asked_data(trained, flags.input, flags.labels, flags.prompt)
    count = min(flags.num_samples, len(data))
    x, cond, y = simulate(task, data, count, trained.seed)
    return Problems(y, cond, x, f"simulated for {count} samples ({source})")


def _conditions(trained: Trained, flags: SolveFlags, count: int) -> Condition:
    """Of measurements of a file: their classes or captions, which may be left out."""
    texts = read_prompts(flags.prompt, flags.labels)
    if texts:
        return trained.of_texts(texts, count)
    if trained.captioned and flags.labels is None:
        return trained.without_caption(count)
    require(
        trained.every_condition is None or flags.labels is not None,
        "labels: this model was trained with classes; give those of the measurements, as in --labels 3",
    )
    return trained.conditions(count, flags.labels)


def _held_out(trained: Trained) -> tuple[ArrayData | None, str]:
    """The held-out samples of the run, or why there are none."""
    try:
        held_out = own_data(trained)[1]
    except UsageError as error:
        return None, f"not known: {error}"
    return held_out, "not known: the run held out no samples" if held_out is None else "not asked for (--cases)"


def _settings(trained: Trained, flags: SolveFlags, solver: Solver, problems: Problems) -> dict[str, Any]:
    """All that the samples depend on, as JSON can hold it."""
    given = {"y": problems.y} | dict(condition.parts(problems.cond))
    return (
        trained.sampling_key()
        | task_key(flags, trained)
        | {
            "solver": [solver.name, str(solver.sampler), solver.num_steps, solver.particles],
            "at_once": [solver.at_once(flags.draws, len(problems.y)), flags.draws],
            "method": trained.config.sampling.method.to_dict(),
            "seed": trained.seed,
            "given": digest(given),
        }
    )


def _drawn(flags: SolveFlags, seed: int, solver: Solver, problems: Problems, shards: SampleShards) -> Samples:
    """Samples `(N, draws, *shape)`, on the host; those that an earlier command left are not drawn again."""
    draws = flags.draws
    parts = list(batches(len(problems.y), solver.at_once(draws, len(problems.y))))
    missing = [part for part in parts if not shards.has(part.start)]
    total = sum(solver.total(part.stop - part.start, draws) for part in missing)
    with Progress("solve", max(1, total), unit="evaluations") as progress:
        for part in missing:
            y = problems.y[part]
            cond = condition.take(problems.cond, part)
            shards.write(part.start, solver.draw(y, cond, draws, seed, part.start, lambda *_: progress.advance()))
    drawn = [shards.read(part.start) for part in parts]
    return Samples(torch.cat([part.x for part in drawn]), max(part.nfe for part in drawn))


def _report(task: Task, flags: SolveFlags, problems: Problems, x: Tensor) -> None:
    """Prints how data `(N, draws, *shape)` fit the measurement, the truth and the exact posterior."""
    variance = torch.as_tensor(task.noise.variance(problems.y)).expand(problems.y.shape)
    with torch.no_grad():
        left = problems.y[:, None] - task.operator(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    residual = left.square().mean().sqrt().item()
    expected = variance.mean().sqrt().item()
    print(f"residual: {residual:.3g} (root mean square); the noise has {expected:.3g}")
    if problems.truth is not None:
        print(_accuracy(task, x.mean(1), problems.truth))
    exact = _exact(task, flags, problems)
    if exact:
        print(_distance(exact, x, task.trained.seed))


def _accuracy(task: Task, mean: Tensor, truth: Tensor) -> str:
    """PSNR and SSIM of the means of images, RMS errors of other data."""
    raw_mean = task.decode(mean).float()
    raw = task.decode(truth).float()
    error = (raw_mean - raw).square().mean().sqrt().item()
    text = f"mean: RMS error {error:.3g}"
    if truth.ndim != 4:
        return text
    if importlib.util.find_spec("torchmetrics") is None:
        return f"{text}; for PSNR and SSIM: pip install 'scoresde[inverse]'"
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ends = (float(task.trained.data.low), float(task.trained.data.high))
    psnr = peak_signal_noise_ratio(raw_mean, raw, data_range=ends, dim=(1, 2, 3), reduction="elementwise_mean")
    ssim = structural_similarity_index_measure(raw_mean.clamp(*ends), raw, data_range=ends)
    return f"{text}, PSNR {psnr:.2f} dB, SSIM {ssim:.3f}"


def _exact(task: Task, flags: SolveFlags, problems: Problems) -> list[GaussianMixture]:
    """The exact posterior of each measurement, if the data are of a known distribution; else none."""
    trained, operator = task.trained, task.operator
    known = None if trained.config.data.path else known_mixture(trained.config.data.name)
    if known is None or not isinstance(operator, LinearOperator) or flags.input is not None:
        return []
    mixture, classes = known
    codec = task.codec
    center, scale = (getattr(codec, part, None) for part in ("center", "scale"))
    if not isinstance(center, float | int) or not isinstance(scale, float | int):
        return []
    posteriors = []
    for k, y in enumerate(problems.y.double()):
        prior = mixture.scaled(center, scale)
        if trained.data.num_classes and isinstance(problems.cond, Tensor):
            prior = prior.components(classes == problems.cond[k].item())
        try:
            posteriors.append(prior.posterior(operator, y, task.noise))
        except UsageError:
            return []
    return posteriors


def _distance(exact: list[GaussianMixture], x: Tensor, seed: int) -> str:
    """The mean sliced distance to the exact posteriors, over that of exact samples."""
    found = []
    floor = []
    for k, posterior in enumerate(exact):
        generator = torch.Generator().manual_seed(seed + k)
        one, other = posterior.sample(2 * x.shape[1], generator).chunk(2)
        found.append(sliced_wasserstein(x[k].double(), one))
        floor.append(sliced_wasserstein(other, one))
    ratio = sum(found) / sum(floor)
    return f"exact posterior: sliced W2 distance {sum(found) / len(found):.3g}, {ratio:.2f} of that of exact samples"

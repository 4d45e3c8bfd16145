"""`--mode invert` and `--mode interpolate`: data to noise along the probability flow, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samplers import slerp, to_data, to_noise
from scoresde import condition
from scoresde.app.device import choose_threads
from scoresde.app.files import output_path
from scoresde.app.flags import InterpolateFlags, InvertFlags
from scoresde.app.pictures import labels_array, save_numbers, save_picture
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data
from scoresde.data.arrays import ArrayData
from scoresde.errors import require

EVALUATIONS = 64
SHOWN = 10
COLUMNS = 9  # of an interpolation, both ends included


@torch.no_grad()
def invert(flags: InvertFlags, overrides: Sequence[str]) -> int:
    """Writes the noise of samples and what it leads back to (.npz), and a picture of samples above what came back."""
    trained = Trained.of(flags, overrides)
    require(flags.num_samples is None or flags.num_samples >= 1, f"num_samples={flags.num_samples}: need at least 1")
    output = output_path(flags.output, trained.folder / "invert.png", ".npz")
    data, source = asked_data(trained, flags.input)
    count = len(data) if flags.num_samples is None else min(flags.num_samples, len(data))
    steps = EVALUATIONS if flags.num_steps is None else flags.num_steps
    model = trained.model
    size = trained.batch_size()
    choose_threads(min(size, count) * math.prod(model.shape))
    x, cond = data.batch(slice(count))
    x = x.to(model.device)
    cond = condition.to(cond, model.device)
    with Progress("invert", 2 * -(-count // size) * steps, unit="evaluations") as progress:
        latent = to_noise(model, x, cond, num_evaluations=steps, batch_size=size, on_evaluation=progress.advance)
        back = to_data(model, latent, cond, num_evaluations=steps, batch_size=size, on_evaluation=progress.advance)
    error = (back - x).square().mean().sqrt().item()
    raw = trained.decode(x)
    returned = trained.decode(back)
    rows = min(SHOWN, count)
    save_picture(output, torch.cat([raw[:rows], returned[:rows]]), trained.data, columns=rows)
    numbers = output.with_suffix(".npz")
    labels = cond if isinstance(cond, Tensor) else None
    save_numbers(numbers, latents=latent.cpu(), samples=raw, returned=returned, labels=labels_array(labels, count))
    share = latent.std().item() / model.sde.prior_std()
    print(f"{count} samples ({source}), {steps} evaluations each way")
    print(f"round trip: RMS error {error:.2g} of a deviation of {x.std().item():.3g}, in units of the model")
    print(f"noise: its deviation is {share:.3f} of the prior's")
    print(f"picture: {output}\nnumbers: {numbers}")
    return 0


@torch.no_grad()
def interpolate(flags: InterpolateFlags, overrides: Sequence[str]) -> int:
    """Draws rows from one sample to another: data from the great circle between their noises.

    A conditional model draws each row in the class of its samples, or of their caption: pairs are of one.
    """
    trained = Trained.of(flags, overrides)
    pairs = flags.num_samples
    require(pairs >= 1, f"num_samples={pairs}: need at least 1 pair")
    output = output_path(flags.output, trained.folder / "interpolate.png", ".npz")
    data, source = asked_data(trained, flags.input)
    steps = EVALUATIONS if flags.num_steps is None else flags.num_steps
    index = _pairs(_kinds(data), pairs)
    require(
        len(index) == 2 * pairs,
        f"num_samples={pairs}: there are only {len(index) // 2} pairs among {len(data)} samples"
        + (", of one caption each; samples of --input are taken without captions" if trained.captioned else ""),
    )
    model = trained.model
    size = trained.batch_size()
    choose_threads(min(size, pairs * COLUMNS) * math.prod(model.shape))
    both, cond = data.batch(index)
    both = both.to(model.device)
    cond = condition.to(cond, model.device)
    total = (-(-2 * pairs // size) + -(-pairs * COLUMNS // size)) * steps
    with Progress("interpolate", total, unit="evaluations") as progress:
        first, second = to_noise(
            model, both, cond, num_evaluations=steps, batch_size=size, on_evaluation=progress.advance
        ).chunk(2)
        between = slerp(first, second, torch.linspace(0, 1, COLUMNS, device=model.device))
        rows = between.transpose(0, 1).flatten(0, 1)
        of_rows = condition.apply(lambda part: part[:pairs].repeat_interleave(COLUMNS, 0), cond)
        drawn = to_data(model, rows, of_rows, num_evaluations=steps, batch_size=size, on_evaluation=progress.advance)
    error = (drawn.unflatten(0, (pairs, COLUMNS))[:, 0] - both[:pairs]).square().mean().sqrt().item()
    raw = trained.decode(drawn)
    save_picture(output, raw, trained.data, torch.arange(len(raw)) // COLUMNS, COLUMNS)
    numbers = output.with_suffix(".npz")
    save_numbers(numbers, samples=raw.unflatten(0, (pairs, COLUMNS)))
    print(f"{pairs} pairs ({source}), {COLUMNS} samples a row; the ends are met with an RMS error of {error:.2g}")
    print(f"picture: {output}\nnumbers: {numbers}")
    return 0


def _kinds(data: ArrayData) -> Tensor:
    """A number for each sample, the same for those of one class or caption."""
    cond = data.cond
    known = cond.get("text") if isinstance(cond, Mapping) else data.labels
    return known if isinstance(known, Tensor) else torch.zeros(len(data), dtype=torch.long)


def _pairs(labels: Tensor, count: int) -> Tensor:
    """Pairs of samples of one class, the classes in turn: all first samples, then all second ones."""
    by_class = [torch.nonzero(labels == k).flatten() for k in labels.unique()]
    found = [group[2 * i : 2 * i + 2] for i in range(len(labels) // 2) for group in by_class]
    chosen = [pair for pair in found if len(pair) == 2][:count]
    if not chosen:
        return torch.zeros(0, dtype=torch.long)
    return torch.stack(chosen).T.flatten()

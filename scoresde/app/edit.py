"""`--mode edit`: samples changed by noise and denoising (SDEdit)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from samplers import edit
from scoresde import condition
from scoresde.app.device import choose_threads
from scoresde.app.files import output_path
from scoresde.app.flags import EditFlags
from scoresde.app.pictures import labels_array, save_numbers, save_picture
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data
from scoresde.errors import UsageError, require
from sde_configs import build


def edit_samples(flags: EditFlags, overrides: Sequence[str]) -> int:
    """Writes edits of samples (.npz), and a picture of the samples above their edits at each noise level."""
    trained = Trained.of(flags, overrides)
    for name, value in {"num_samples": flags.num_samples, "draws": flags.draws, "num_steps": flags.num_steps}.items():
        require(value is None or value >= 1, f"{name}={value}: need at least 1")
    levels = _levels(flags.noise_levels)
    output = output_path(flags.output, trained.folder / "edit.png", ".npz")
    sampler = build.build_sampler(trained.config, flags.sampler, flags.num_steps)
    data, source = asked_data(trained, flags.input, flags.labels, flags.prompt)
    count = min(flags.num_samples, len(data))
    x, cond = data.batch(slice(0, count))
    model = trained.model
    size = trained.batch_size()
    choose_threads(min(size, count * flags.draws) * math.prod(model.shape))
    each = torch.arange(count).repeat(flags.draws)
    found = []
    with Progress("edit", len(levels), unit="noise levels") as progress:
        for level in levels:
            edited = edit(
                model,
                sampler,
                x[each],
                level,
                num_steps=flags.num_steps,
                cond=condition.take(cond, each),
                seed=trained.seed,
                batch_size=size,
            )
            found.append(edited)
            progress.advance()
    raw = trained.decode(x)
    edits = [trained.decode(part.x) for part in found]
    labels = cond if isinstance(cond, Tensor) else None
    save_picture(output, torch.cat([raw, *edits]), trained.data, columns=count)
    numbers = output.with_suffix(".npz")
    save_numbers(
        numbers,
        samples=raw,
        edits=torch.stack(edits),
        noise_levels=torch.tensor(levels),
        labels=labels_array(labels, count),
    )
    print(f"{count} samples ({source}), {flags.draws} edits of each at noise levels {flags.noise_levels}")
    for level, part in zip(levels, found, strict=True):
        change = (part.x.cpu() - x[each]).square().mean().sqrt().item()
        print(f"noise level {level:g}: {part.nfe} network evaluations, RMS change {change:.3g} in units of the model")
    print(f"picture: {output}\nnumbers: {numbers}")
    return 0


def _levels(text: str) -> list[float]:
    """Noise levels between commas."""
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"noise_levels={text!r}: need numbers between commas, as in --noise_levels 0.5,1,2") from error
    return levels

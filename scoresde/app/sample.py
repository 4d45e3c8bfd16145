"""`--mode sample`: from a checkpoint to a picture and an array."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from samplers import sample as draw
from scoresde.app.device import choose_threads
from scoresde.app.pictures import demo_labels, save_numbers, save_picture
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder
from scoresde.checkpoint import Checkpoint
from scoresde.data import Scaling
from scoresde.errors import UsageError, require
from scoresde.sde import Level
from scoresde.training import join_world
from sde_configs import build


def sample(
    checkpoint: Checkpoint,
    config: ConfigDict,
    sampler_name: str,
    output: Path,
    *,
    num_samples: int,
    num_steps: int | None,
    labels: str | None,
    seed: int,
    device: torch.device,
) -> int:
    """Draws samples from a checkpoint, and writes `output` (PNG) and an .npz beside it; returns the exit status."""
    require(num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    require(num_steps is None or num_steps >= 1, f"num_steps={num_steps}: need at least 1")
    batch_size = config.sampling.batch_size
    require(batch_size >= 1, f"config.sampling.batch_size={batch_size}: need at least 1")
    make_folder(output.parent, "output", output)
    for path in (output, output.with_suffix(".npz")):
        require(not path.is_dir(), f"output={str(path)!r}: is a folder; choose another with --output")
    model, data = checkpoint.model(), checkpoint.description["data"]
    sampler = build.build_sampler(config, sampler_name, num_steps)
    cond = parse_labels(labels, num_samples, data["num_classes"])
    grid = sampler.default_grid(model.sde, sampler.default_num_steps if num_steps is None else num_steps)

    world, device = join_world(device)
    mine = world.share(num_samples)
    require(num_samples >= world.size, f"num_samples={num_samples}: need one for each of the {world.size} processes")
    model = model.to(device)
    choose_threads(min(mine.stop - mine.start, batch_size) * math.prod(model.shape))
    evaluations, batches = sampler.num_evaluations(model.sde, grid), -(-(mine.stop - mine.start) // batch_size)
    with Progress("sample", (evaluations or 100) * batches, unit="evaluation", shown=world.leader) as progress:

        def advance(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
            progress.update(min(progress.count + 1, progress.total))

        x, nfe = draw(
            model,
            sampler,
            mine.stop - mine.start,
            grid=grid,
            cond=None if cond is None else cond[mine],
            seed=seed,
            first_index=mine.start,
            batch_size=batch_size,
            callback=advance,
        )
    raw = Scaling(*(tuple(v) if isinstance(v := data[key], list) else v for key in ("center", "scale"))).to_raw(
        world.gather(x, num_samples).cpu()
    )
    if world.leader:
        save_picture(output, raw, cond, data["low"], data["high"], data["num_classes"])
        save_numbers(output.with_suffix(".npz"), raw, cond, seed)
        print(f"{num_samples} samples by {sampler_name}, {nfe} network evaluations each")
        print(f"picture: {output}\nnumbers: {output.with_suffix('.npz')}")
    return 0


def parse_labels(text: str | None, num_samples: int, num_classes: int) -> Tensor | None:
    """Labels of the samples: "3" or "3,1,4" repeated to the number of samples; by default all classes in turn."""
    if text is None:
        return demo_labels(num_samples, num_classes)
    require(num_classes > 0, f"labels={text!r}: this model was trained without classes; leave --labels out")
    try:
        given = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"labels={text!r}: need whole numbers between commas, as in --labels=3,1,4") from error
    bad = [label for label in given if not 0 <= label < num_classes]
    require(not bad, f"labels={text!r}: {bad[:1]} is no class; this model knows 0 to {num_classes - 1}")
    return torch.tensor(given).repeat(-(-num_samples // len(given)))[:num_samples]

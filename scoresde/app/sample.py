"""`--mode sample`: from a checkpoint to a picture and an array."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from samplers import Sampler, prepare
from samplers.sampling import joined
from scoresde import condition
from scoresde._batches import batches
from scoresde.app.device import choose_threads
from scoresde.app.files import output_path
from scoresde.app.fitted_tables import best_tables
from scoresde.app.flags import SampleFlags
from scoresde.app.pictures import labels_array, save_numbers, save_picture
from scoresde.app.piloted import piloted_sampler
from scoresde.app.progress import Progress
from scoresde.app.shards import SampleShards
from scoresde.app.trained import Trained
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.training.parallel import World, join_world, leave_world
from sde_configs import build

UNKNOWN_EVALUATIONS = 100  # what the progress bar takes for an adaptive sampler's


@final
@dataclass(frozen=True)
class Plan:
    """What is drawn, and how: all that samples depend on beside the model and the seed."""

    sampler: Sampler
    grid: Tensor
    cond: Condition
    num_samples: int
    batch_size: int

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "sampler": str(self.sampler),
            "grid": self.grid.tolist(),
            "cond": {name: part.tolist() for name, part in condition.parts(self.cond)},
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
        }


def sample(flags: SampleFlags, overrides: Sequence[str]) -> int:
    """Draws samples from a checkpoint, and writes a picture and an .npz beside it; returns the exit status.

    Batches are kept on disk as they are drawn: the same command goes on after a kill, and no sample is lost or doubled.
    """
    trained = Trained.of(flags, overrides)
    batch_size = trained.batch_size()
    for name, value in {"num_samples": flags.num_samples, "num_steps": flags.num_steps}.items():
        require(value is None or value >= 1, f"{name}={value}: need at least 1")
    if flags.sampler != build.AUTO:
        build.build_sampler(trained.config, flags.sampler, flags.num_steps)  # a mistake is named before anything else
    output = output_path(
        flags.output, trained.folder / f"{flags.sampler}{trained.guiding.label}-seed{trained.seed}.png", ".npz"
    )
    numbers = output.with_suffix(".npz")
    cond = trained.conditions(flags.num_samples, flags.labels)

    world, device = join_world(trained.device)
    trained = trained.on(device)
    sampler, grid = _sampler(trained, flags, world.leader)
    size = min(batch_size, -(-flags.num_samples // world.size))
    plan = Plan(sampler, grid, cond, flags.num_samples, size)
    shards = SampleShards(output, trained.sampling_key() | plan.as_json() | {"seed": trained.seed})
    with shards.locked() if world.leader else contextlib.nullcontext():
        _draw(trained, plan, shards, world)
        world.wait(device)
        if world.leader:
            x, nfe = joined([shards.read(part.start) for part in batches(plan.num_samples, size)])
            raw = trained.decode(x)
            labels = cond if isinstance(cond, Tensor) else None
            save_picture(output, raw, trained.data, labels)
            save_numbers(
                numbers, samples=raw, labels=labels_array(labels, len(raw)), seeds=_seeds(trained.seed, len(raw))
            )
            shards.remove()
            print(f"{len(raw)} samples by {flags.sampler}, {nfe} network evaluations each")
            print(f"picture: {output}\nnumbers: {numbers}")
    leave_world()
    return 0


def _sampler(trained: Trained, flags: SampleFlags, leader: bool) -> tuple[Sampler, Tensor]:
    """The sampler that flags ask for, fitted to the model if it is to be, and its grid."""
    name = flags.sampler
    num_steps = flags.num_steps
    if name == build.AUTO:
        fitted, calibrated = best_tables(trained, leader)
        grid = fitted.grid(trained.model, num_steps)
        if leader and len(grid) - 1 in calibrated:
            print(f"the table of {len(grid) - 1} evaluations is calibrated", flush=True)
        return fitted, grid
    return piloted_sampler(trained, name, num_steps, leader)


def _draw(trained: Trained, plan: Plan, shards: SampleShards, world: World) -> None:
    """Draws this process's shards that are not there yet."""
    model = trained.model
    graphed = trained.config.sampling.cuda_graph
    everything = list(batches(plan.num_samples, plan.batch_size))
    mine = everything[world.rank :: world.size]
    missing = [part for part in mine if not shards.has(part.start)]
    if world.leader and len(missing) < len(mine):
        there = sum(shards.has(part.start) for part in everything)
        print(f"going on: {there} of {len(everything)} shards are there", flush=True)
    choose_threads(plan.batch_size * math.prod(model.shape))
    prepared = prepare(model, plan.sampler, plan.grid, cuda_graph=graphed)
    levels = plan.sampler.evaluated(model, plan.grid)
    rows = UNKNOWN_EVALUATIONS if levels is None else len(levels)
    total = rows * max(1, len(missing))
    with (
        Progress("sample", total, unit="evaluations", shown=world.leader) as progress,
        torch.no_grad(),
        model.eval_mode(),
    ):

        def advance(*_: Any) -> None:
            progress.update(min(progress.count + 1, total))

        for part in missing:
            noise = Noise(trained.seed, torch.arange(part.start, part.stop, device=model.device))
            cond = condition.to(condition.take(plan.cond, part), model.device)
            drawn = prepared.draw(noise, cond, None if graphed else advance)
            if graphed:
                progress.update(min(progress.count + rows, total))
            shards.write(part.start, drawn)


def _seeds(seed: int, count: int) -> np.ndarray:
    """(seed, index) of each sample."""
    return np.stack([np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64)], 1)

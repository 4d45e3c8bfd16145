"""Drawing many samples, a shard at a time, by one or several processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from samplers import Sampler, prepare
from scoresde import condition
from scoresde._batches import batches
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import best_tables
from scoresde.app.flags import SampleFlags
from scoresde.app.piloted import piloted_sampler
from scoresde.app.progress import Progress
from scoresde.app.shards import Shards
from scoresde.app.trained import Trained
from scoresde.checkpoint import digest
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.noise import Noise
from scoresde.training.parallel import World
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
            "cond": {name: _as_json(part) for name, part in condition.parts(self.cond)},
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
        }


def _as_json(part: Tensor) -> Any:
    """A part of a condition: whole numbers as they are, of others a checksum."""
    return digest({"part": part}) if part.is_floating_point() else part.tolist()


def check_flags(flags: SampleFlags, trained: Trained) -> None:
    """Raises `UsageError` for numbers or a sampler that cannot be: a mistake is named before anything else."""
    for name, value in {"num_samples": flags.num_samples, "num_steps": flags.num_steps}.items():
        require(value is None or value >= 1, f"{name}={value}: need at least 1")
    if flags.sampler != build.AUTO:
        build.build_sampler(trained.config, flags.sampler, flags.num_steps)


def read_prompts(given: str | None, labels: str | None) -> list[str]:
    """What --prompt asks for: texts between |, or the lines of a .txt file; none without it.

    Args:
        given: the flag.
        labels: the flag --labels.

    Raises:
        UsageError: for a prompt beside labels, or a file that cannot be read.
    """
    if given is None:
        return []
    require(labels is None, f"prompt={given!r}, labels={labels!r}: give one of the two")
    if not given.endswith(".txt"):
        return [text.strip() for text in given.split("|")]
    path = Path(given).expanduser()
    require(path.is_file(), f"prompt={given!r}: no such file; give a text, or a .txt file with one a line")
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"prompt={given!r}: is not text in UTF-8 ({error.reason}); save it as UTF-8") from error
    require(len(texts) > 0, f"prompt={given!r}: the file is empty; write one text a line")
    return texts


def choose_sampler(trained: Trained, name: str, num_steps: int | None, leader: bool) -> tuple[Sampler, Tensor]:
    """The sampler of a name, fitted to the model if it is to be, and its grid."""
    if name == build.AUTO:
        fitted, calibrated = best_tables(trained, leader)
        grid = fitted.grid(trained.model, num_steps)
        if leader and len(grid) - 1 in calibrated:
            print(f"the table of {len(grid) - 1} evaluations is calibrated", flush=True)
        return fitted, grid
    return piloted_sampler(trained, name, num_steps, leader)


def draw(trained: Trained, plan: Plan, shards: Shards, world: World) -> None:
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

"""`--mode sample`: from a checkpoint to a picture and an array."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from samplers.sampling import joined
from scoresde._batches import batches
from scoresde.app.drawing import Plan, choose_sampler, draw
from scoresde.app.files import output_path
from scoresde.app.flags import SampleFlags
from scoresde.app.pictures import labels_array, save_numbers, save_picture
from scoresde.app.shards import SampleShards
from scoresde.app.trained import Trained
from scoresde.errors import UsageError, require
from scoresde.training.parallel import join_world, leave_world
from sde_configs import build


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
    texts = read_prompts(flags)
    cond = trained.of_texts(texts, flags.num_samples) if texts else trained.conditions(flags.num_samples, flags.labels)

    world, device = join_world(trained.device)
    trained = trained.on(device)
    sampler, grid = choose_sampler(trained, flags.sampler, flags.num_steps, world.leader)
    size = min(batch_size, -(-flags.num_samples // world.size))
    plan = Plan(sampler, grid, cond, flags.num_samples, size)
    shards = SampleShards(output, trained.sampling_key() | plan.as_json() | {"seed": trained.seed})
    with shards.locked() if world.leader else contextlib.nullcontext():
        draw(trained, plan, shards, world)
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


def read_prompts(flags: SampleFlags) -> list[str]:
    """What --prompt asks for: texts between |, or the lines of a .txt file; none without it.

    Raises:
        UsageError: for a prompt beside labels, or a file that cannot be read.
    """
    given = flags.prompt
    if given is None:
        return []
    require(flags.labels is None, f"prompt={given!r}, labels={flags.labels!r}: give one of the two")
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


def _seeds(seed: int, count: int) -> np.ndarray:
    """(seed, index) of each sample."""
    return np.stack([np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64)], 1)

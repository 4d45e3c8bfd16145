"""`--mode sample`: from a checkpoint to a picture and an array."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from samplers.sampling import joined
from scoresde._batches import batches
from scoresde.app.cascade import sample_cascade
from scoresde.app.drawing import Plan, check_flags, choose_sampler, draw, read_prompts
from scoresde.app.files import output_path
from scoresde.app.flags import SampleFlags
from scoresde.app.parts import examples_of
from scoresde.app.pictures import labels_array, save_numbers, save_picture, save_prompts, seeds_array
from scoresde.app.shards import SampleShards
from scoresde.app.trained import Trained
from scoresde.training.parallel import join_world, leave_world


def sample(flags: SampleFlags, overrides: Sequence[str]) -> int:
    """Draws samples from a checkpoint, and writes a picture and an .npz beside it; returns the exit status.

    Batches are kept on disk as they are drawn: the same command goes on after a kill, and no sample is lost or doubled.
    """
    if flags.cascade is not None:
        return sample_cascade(flags, overrides)
    trained = Trained.of(flags, overrides)
    batch_size = trained.batch_size()
    check_flags(flags, trained)
    output = output_path(
        flags.output, trained.folder / f"{flags.sampler}{trained.guiding.label}-seed{trained.seed}.png", ".npz"
    )
    numbers = output.with_suffix(".npz")
    texts = read_prompts(flags.prompt, flags.labels)
    if trained.captioned and flags.labels is None:
        texts = texts or examples_of(trained.checkpoint)
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
            if texts:
                save_prompts(output, raw, trained.data, texts)
            else:
                save_picture(output, raw, trained.data, labels)
            said = {"prompts": np.array(texts)[np.arange(len(raw)) % len(texts)]} if texts else {}
            labelled = labels_array(labels, len(raw))
            save_numbers(numbers, samples=raw, labels=labelled, seeds=seeds_array(trained.seed, len(raw)), **said)
            shards.remove()
            print(f"{len(raw)} samples by {flags.sampler}, {nfe} network evaluations each")
            print(f"picture: {output}\nnumbers: {numbers}")
    leave_world()
    return 0

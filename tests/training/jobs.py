"""Short trainings that one process does alone, or several together, and what each of them finds.

`together` starts two processes, which do all of `JOBS`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from scoresde import (
    MLP,
    VPSDE,
    EDMParametrization,
    LearnedVPSDE,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    TrainingOptions,
    UNet,
)
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective, Objective, VariationalObjective
from scoresde.training import Trainer, World, join_world, leave_world
from scoresde.training.parallel import ALONE
from tests.exercises.embedding import EmbeddingCodec, RoundingObjective, SentenceNetwork
from tests.training.trainers import STD, Recorder, Stream, advance, gaussian_data, make_model

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# what is drawn


def recorded(device=CPU, world=ALONE, **options):
    """What an objective is given in three steps, `(steps, samples, ...)` by name, with all that augments a batch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 2, 4), generator=generator, dtype=torch.uint8)
    data = ArrayData(images, torch.arange(40) % 3)
    network = UNet(1, channels=2, num_classes=3, label_dropout=0.4)
    codec = Scaling(127.5, 127.5)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (1, 2, 4), codec).to(device)
    recorder = Recorder()
    options = TrainingOptions(num_steps=3, batch_size=16, flip=True, dequantize=True, **options)
    advance(Trainer(model, data, recorder, options, 5, world), 3)
    found = {
        "raw": [batch.raw for batch in recorder.batches],
        "cond": [batch.cond for batch in recorder.batches],
        "t": [draws["t"] for draws in recorder.draws],
        "eps": [draws["eps"] for draws in recorder.draws],
    }
    parts = options.accumulate
    return {
        name: torch.stack([torch.cat(values[parts * k : parts * (k + 1)]) for k in range(3)]).cpu()
        for name, values in found.items()
    }


def asked(world=ALONE):
    """The steps, and the places in the batch, that a process asks batches of a user's own for."""
    options = TrainingOptions(num_steps=3, batch_size=8)
    trainer = Trainer(make_model(CPU, num_classes=4), Stream(8), DenoisingObjective(), options, 0, world)
    return [[step, part.start, part.stop] for step, part in advance(trainer, 3).batches.asked]


# trainings


class OneBad(Objective):
    """The denoising loss, which is not a number for one sample of step 1: the first of the batch."""

    def draw(self, model, batch, noise):
        bad = (noise.places == 0) & (noise.step == 1)
        return {**DenoisingObjective().draw(model, batch, noise), "bad": bad}

    def at(self, model, batch, draws, averaged=contextlib.nullcontext):
        return DenoisingObjective().at(model, batch, draws) * torch.where(draws["bad"], float("nan"), 1.0)


def randomised(network):
    """A network whose last layer is not zero, so that every weight has a gradient in the first step; float64."""
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    return network.double()


def gaussian_model(sde):
    network = randomised(MLP(2, width=16, depth=2, num_classes=3, label_dropout=0.2))
    return NetworkScoreModel(network, sde, NoiseParametrization(STD), (2,))


def labelled(num_samples, seed):
    return ArrayData(gaussian_data(num_samples, seed).values, torch.arange(num_samples) % 3)


def sentences(num_samples, seed):
    return ArrayData(torch.randint(0, 5, (num_samples, 4), generator=torch.Generator().manual_seed(seed)))


def sentence_model():
    codec = EmbeddingCodec(5, 8)
    network = randomised(SentenceNetwork(4, 8, features=32))
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), (4, 8), codec).double()


KINDS = {  # model, data and objective
    "labels": (lambda: gaussian_model(VPSDE()), labelled, DenoisingObjective()),
    "a codec with weights": (sentence_model, sentences, RoundingObjective()),
    "a learned path": (lambda: gaussian_model(LearnedVPSDE().double()), labelled, VariationalObjective()),
    "a gradient that is not finite": (lambda: gaussian_model(VPSDE()), labelled, OneBad()),
}


def trainer_of(kind, world=ALONE, **options):
    model, data, objective = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model()
    options = TrainingOptions(
        num_steps=12, batch_size=16, warmup_steps=2, lr=1e-2, ema_decay=0.9, ema_lengths=(0.05, 0.1), **options
    )
    return Trainer(made, data(64, 0), objective, options, 0, world)


def course(kind, world=ALONE, **options):
    """Losses and held-out losses of four steps, the steps that were skipped, and the state at the end."""
    trainer = trainer_of(kind, world, **options)
    held_out = KINDS[kind][1](24, 1)
    losses, held_out_losses, skipped = [], [], []
    for _ in range(4):
        metrics = advance(trainer, 1).pop_metrics()
        losses.append(float("nan") if metrics["loss"] is None else metrics["loss"])
        skipped.append(metrics.get("skipped", 0))
        held_out_losses.append(trainer.held_out_loss(held_out))
    return {"losses": losses, "held out": held_out_losses, "skipped": skipped, "state": trainer.state()}


def in_two_parts(world=ALONE, state=None, **options):
    """The states after three steps and after two more, and the loss of them all; the first three may be given."""
    trainer = trainer_of("labels", world, **options)
    if state is None:
        state = {name: value.clone() for name, value in advance(trainer, 3).state().items()}
    else:
        trainer.load_state(3, state)
    advance(trainer, 2)
    return {"first": state, "last": trainer.state(), "loss": trainer.pop_metrics()["loss"]}


# two processes


def all_jobs(world: World, folder: Path):
    """What a process finds in all jobs."""
    state = torch.load(folder / "state of one.pt", weights_only=True)
    found = {
        "recorded": recorded(CPU, world),
        "recorded in parts": recorded(CPU, world, accumulate=2),
        "asked": asked(world),
        "sharded, in two parts": in_two_parts(world, shard=True),
        "sharded, from the state of one": in_two_parts(world, state, shard=True),
    }
    for kind in KINDS:
        found[f"{kind}, replicated"] = course(kind, world)
        found[f"{kind}, sharded"] = course(kind, world, shard=True, accumulate=2)
    return found


def together(folder: Path):
    """What each of two processes finds in all jobs, in a folder that holds what they are given."""
    processes = []
    for rank in (0, 1):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-m", "tests.training.jobs", str(folder)]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        )
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def main(folder: Path) -> None:
    """Takes part in all jobs; the processes meet at a file."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world, _ = join_world(CPU)
    torch.save(all_jobs(world, folder), folder / f"{rank}.pt")
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

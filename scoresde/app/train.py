"""`--mode train`: from a configuration to a trained model in a folder."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from ml_collections import ConfigDict

from samplers import Heun, sample
from scoresde import checkpoint
from scoresde.app.config import load_config, override
from scoresde.app.device import choose_device, choose_threads, fast_bfloat16
from scoresde.app.flags import TrainFlags
from scoresde.app.interrupt import Interruption
from scoresde.app.pictures import save_picture
from scoresde.app.progress import Progress
from scoresde.app.run_folder import RunFolder
from scoresde.app.tracking import Tracker
from scoresde.data.arrays import ArrayData
from scoresde.data.info import DataInfo
from scoresde.errors import require
from scoresde.training import DivergedError, Trainer, join_world, leave_world
from sde_configs import build

MAX_NAMES = 12  # of classes that are printed
DEMO_SAMPLES = 100
LOWEST_LR_SCALE = 1 / 8  # after three divergences


def train(flags: TrainFlags, overrides: Sequence[str]) -> int:
    """Trains what flags and overrides ask for; returns the exit status."""
    config = load_config(flags.sde, flags.config)
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    name = flags.sde or Path(flags.config or "vp").stem
    if flags.sde and flags.config:
        name = f"{Path(flags.config).stem}-{flags.sde}"
    status = train_in(RunFolder(Path(flags.workdir or f"runs/{name}")), config, choose_device(flags.device))
    leave_world()
    return status


@final
@dataclass(frozen=True)
class Run:
    """A run in training: its folder, its trainer, and what its checkpoints say of it."""

    folder: RunFolder
    trainer: Trainer
    config: ConfigDict
    description: dict[str, Any]
    info: DataInfo
    held_out: ArrayData | None

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.trainer.world.leader


def train_in(folder: RunFolder, config: ConfigDict, device: torch.device) -> int:
    """Trains, or continues, the run in a folder; returns the exit status."""
    for name in ("every", "checkpoint_every", "keep"):
        require(config.logging[name] >= 1, f"config.logging.{name}={config.logging[name]}: need at least 1")
    world, device = join_world(device)
    plain_config = json.loads(config.to_json_best_effort())
    data, held_out = build.build_data(config)
    choose_threads(config.training.batch_size // world.size * math.prod(data.shape))
    model = build.build_model(config, data).to(device)
    info = DataInfo.of(data, held_out)
    description = {
        "models": {checkpoint.SCORE: checkpoint.describe_model(model)},
        "data": info.to_json(),
        "config": plain_config,
    }
    trainer = Trainer(model, data, build.build_objective(config), build.build_options(config), config.seed, world)
    run = Run(folder, trainer, config, description, info, held_out)
    with _claimed(run, plain_config):
        resume(run)
        if trainer.step_number >= trainer.options.num_steps:
            if run.leader:
                print(
                    f"{folder.path} is trained: {trainer.step_number} steps; --config.training.num_steps=MORE goes on"
                )
            return 0
        if run.leader:
            folder.cut_logs(trainer.step_number)
            announce(run, data)
        received = loop(run)
    if run.leader and received is None:
        print(f"trained; the checkpoint is {folder.checkpoint_path(trainer.step_number)}")
        print(f"sample: python main.py --mode sample --sampler pc --workdir {folder.path}")
    elif run.leader:
        print(f"stopped at step {trainer.step_number}, saved in {folder.path}; the same command goes on from there")
    return 0 if received is None else 128 + received


@contextlib.contextmanager
def _claimed(run: Run, plain_config: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for this run; only the leader writes there."""
    if not run.leader:
        yield
        return
    run.folder.create()
    with run.folder.locked():
        run.folder.claim(plain_config)
        yield


def announce(run: Run, data: ArrayData) -> None:
    """Says what is about to be trained, on what, and where."""
    trainer = run.trainer
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{trainer.device}" + (f" in {trainer.world.size} processes" if trainer.world.size > 1 else "")
    since = f", from step {trainer.step_number}" if trainer.step_number else ""
    shape = "x".join(map(str, data.shape))
    classes = f" of {data.num_classes} classes" if data.num_classes else ""
    if data.class_names:
        shown = ", ".join(data.class_names[:MAX_NAMES])
        classes += f" ({shown}{', ...' if len(data.class_names) > MAX_NAMES else ''})"
    size = f"{num_parameters:,} parameters on {len(data):,} samples ({shape}){classes}"
    print(f"training {size}, {where}, in {run.folder.path}{since}", flush=True)
    if run.config.training.precision == "bfloat16" and not fast_bfloat16(trainer.device):
        print(
            "training.precision=bfloat16: this CPU has no instructions for it; float32 is many times faster",
            flush=True,
        )


def resume(run: Run) -> bool:
    """Goes on from the newest whole checkpoint, if there is one, which must be of the same data.

    Raises:
        UsageError: if there are checkpoints and none is whole: to begin anew would write over what is left of a run.
    """
    folder = run.folder
    newest = folder.newest_checkpoint(set_aside=run.leader)
    if newest is None:
        found = len(folder.all_checkpoints())
        require(
            found == 0,
            f"workdir={str(folder.path)!r}: none of its {found} checkpoints can be read; choose another --workdir, or "
            f"delete {folder.checkpoints} to begin anew",
        )
        return False
    require(
        newest.description.get("data", {}).get("digest") == run.info.digest,
        f"workdir={str(folder.path)!r}: its run was trained on other data; choose another --workdir",
    )
    run.trainer.load_state(newest.step, newest.tensors)
    return True


def roll_back(run: Run, error: DivergedError) -> None:
    """Goes back to the last checkpoint with half the learning rate, three times at most; otherwise raises the error."""
    trainer = run.trainer
    scale = trainer.lr_scale / 2
    if trainer.options.on_divergence == "stop" or scale < LOWEST_LR_SCALE or not resume(run):
        raise error
    trainer.lr_scale = scale
    if run.leader:
        run.folder.cut_logs(trainer.step_number)
        print(f"diverged ({error}); back at step {trainer.step_number} with {scale:g} of the learning rate", flush=True)


def loop(run: Run) -> int | None:
    """Steps to the end, logging and saving on the way; returns the signal that stopped it, if one did.

    In a world of several processes all run this; the leader writes. A signal is then acted on at the next log line,
    where the processes communicate anyway.
    """
    trainer = run.trainer
    logging = run.config.logging
    num_steps = trainer.options.num_steps
    note = ""
    received = None
    start = time.monotonic()
    with (
        Interruption() as interruption,
        Tracker(logging.wandb if run.leader else "disabled", run.folder.path, run.description["config"]) as tracker,
        Progress("train", num_steps, trainer.step_number, shown=run.leader) as progress,
    ):
        while trainer.step_number < num_steps and received is None:
            trainer.step()
            step = trainer.step_number
            last = trainer.step_number == num_steps
            to_save = step % logging.checkpoint_every == 0 or last
            to_log = step % logging.every == 0 or to_save
            if to_log:
                try:
                    metrics = trainer.pop_metrics()
                except DivergedError as error:
                    roll_back(run, error)
                    continue
                if to_save and run.held_out is not None:
                    metrics["held_out_loss"] = trainer.held_out_loss(run.held_out)
                log(run, metrics, time.monotonic() - start, tracker)
                note = f"loss {metrics['loss']:.4f}" if metrics["loss"] is not None else "loss not finite"
            progress.update(step, note)
            if to_save:
                save(run)
            if step == num_steps // 4 or last:
                draw_demo(run)
            if trainer.world.size == 1 or to_log:
                stop = trainer.world.any(interruption.signal is not None, trainer.device)
                received = (interruption.signal or signal.SIGTERM) if stop else None
        if received is not None:
            save(run)
    return received


def log(run: Run, metrics: dict[str, float | None], seconds: float, tracker: Tracker) -> None:
    """Writes a line of metrics, and when it was."""
    if run.leader:
        run.folder.append(run.folder.metrics, metrics)
        run.folder.append(run.folder.timings, {"step": metrics["step"], "seconds": round(seconds, 3)})
        tracker.log(metrics)


def save(run: Run) -> None:
    """Writes the checkpoint of the step that is reached, and removes those that are not kept.

    Beside the state of the run it says which samples of the data set were held out. All processes take part, as the
    weights may be spread over them; the leader writes.
    """
    step = run.trainer.step_number
    tensors = run.trainer.state()
    if not run.leader:
        return
    if run.held_out is not None and run.held_out.index is not None:
        tensors["held_out"] = run.held_out.index
    checkpoint.save(run.folder.checkpoint_path(step), step, run.description, tensors)
    run.folder.retain(run.config.logging.keep, step)


def draw_demo(run: Run) -> None:
    """A quick look at what the averaged model has learned: 20 Heun steps."""
    trainer = run.trainer
    info = run.info
    labels = torch.arange(DEMO_SAMPLES) % info.num_classes if info.num_classes else None
    with trainer.average.applied(trainer.model):
        x, _ = sample(trainer.model, Heun(), DEMO_SAMPLES, cond=labels)
        raw = trainer.model.codec.decode(x).cpu()
    if run.leader:
        path = run.folder.samples / f"training-step-{trainer.step_number:09d}.png"
        save_picture(path, raw, info, labels)

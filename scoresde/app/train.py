"""`--mode train`: from a configuration to a trained model in a folder."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from samplers import Heun, sample
from scoresde import checkpoint
from scoresde.app.device import choose_threads
from scoresde.app.interrupt import Interruption
from scoresde.app.pictures import demo_labels, save_picture
from scoresde.app.progress import Progress
from scoresde.app.run_folder import RunFolder
from scoresde.app.tracking import Tracker
from scoresde.data import ArrayData
from scoresde.errors import require
from scoresde.training import DivergedError, Trainer, join_world
from sde_configs import build

DEMO_SAMPLES = 100


def train(config: ConfigDict, run: RunFolder, device: torch.device) -> int:
    """Trains, or continues, the run in a folder; returns the exit status."""
    for name in ("every", "checkpoint_every", "keep"):
        require(config.logging[name] >= 1, f"config.logging.{name}={config.logging[name]}: need at least 1")
    world, device = join_world(device)
    plain_config = json.loads(config.to_json_best_effort())
    data, held_out = build.build_data(config)
    choose_threads(config.training.batch_size // world.size * math.prod(data.shape))
    model = build.build_model(config, data).to(device)
    objective, settings = build.build_objective(config, model), build.build_settings(config)
    trainer = Trainer(model, data, objective, settings, config.seed, world)
    description = describe_run(trainer, plain_config)

    if world.leader:
        run.create()
    with run.locked() if world.leader else contextlib.nullcontext():
        if world.leader:
            run.claim(plain_config)
        resume(run, trainer, description)
        if trainer.step_number >= settings.num_steps:
            if world.leader:
                print(f"{run.path} is trained: {trainer.step_number} steps; --config.training.num_steps=MORE goes on")
            return 0
        if world.leader:
            run.cut_logs(trainer.step_number)
            announce(trainer, run)
        received = loop(trainer, config, run, description, held_out)
    if world.leader and received is None:
        print(f"trained; the checkpoint is {run.checkpoint_path(trainer.step_number)}")
        print(f"sample: python main.py --mode sample --sampler pc --workdir {run.path}")
    elif world.leader:
        print(f"stopped at step {trainer.step_number}, saved in {run.path}; the same command goes on from there")
    return 0 if received is None else 128 + received


def announce(trainer: Trainer, run: RunFolder) -> None:
    """Says what is about to be trained, on what, and where."""
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{trainer.device}" + (f" in {trainer.world.size} processes" if trainer.world.size > 1 else "")
    since = f", from step {trainer.step_number}" if trainer.step_number else ""
    shape = "x".join(map(str, trainer.data.shape))
    classes = f" of {trainer.data.num_classes} classes" if trainer.data.num_classes else ""
    size = f"{num_parameters:,} parameters on {len(trainer.data):,} samples ({shape}){classes}"
    print(f"training {size}, {where}, in {run.path}{since}", flush=True)


def resume(run: RunFolder, trainer: Trainer, description: dict[str, Any]) -> bool:
    """Goes on from the newest whole checkpoint, if there is one, which must be of the same data.

    Raises:
        UsageError: where there are checkpoints and none is whole: to begin anew would write over what is left of a run.
    """
    newest = run.newest_checkpoint(set_aside=trainer.world.leader)
    if newest is None:
        found = len(run.all_checkpoints())
        require(
            found == 0,
            f"workdir={str(run.path)!r}: none of its {found} checkpoints can be read; choose another --workdir, or "
            f"delete {run.checkpoints} to begin anew",
        )
        return False
    require(
        newest.description.get("data", {}).get("digest") == description["data"]["digest"],
        f"workdir={str(run.path)!r}: its run was trained on other data; choose another --workdir",
    )
    trainer.load_state(newest.step, newest.tensors)
    return True


def roll_back(run: RunFolder, trainer: Trainer, description: dict[str, Any], error: DivergedError) -> None:
    """Goes back to the last checkpoint with half the learning rate, three times at most; otherwise raises the error."""
    scale = trainer.lr_scale / 2
    if trainer.settings.on_divergence == "stop" or scale < 1 / 8 or not resume(run, trainer, description):
        raise error
    trainer.lr_scale = scale
    if trainer.world.leader:
        run.cut_logs(trainer.step_number)
        print(f"diverged ({error}); back at step {trainer.step_number} with {scale:g} of the learning rate", flush=True)


def loop(
    trainer: Trainer, config: ConfigDict, run: RunFolder, description: dict[str, Any], held_out: ArrayData | None
) -> int | None:
    """Steps to the end, logging and saving on the way; returns the signal that stopped it, if one did.

    In a world of several processes all run this; the leader writes. A signal is then acted on at the next log line,
    where the processes talk to each other anyway.
    """
    num_steps, leader, logging, note = trainer.settings.num_steps, trainer.world.leader, config.logging, ""
    start, received = time.monotonic(), None
    with (
        Interruption() as interruption,
        Tracker(logging.wandb if leader else "disabled", run.path, description["config"]) as tracker,
        Progress("train", num_steps, trainer.step_number, shown=leader) as progress,
    ):
        while trainer.step_number < num_steps and received is None:
            trainer.step()
            step, last = trainer.step_number, trainer.step_number == num_steps
            to_save = step % logging.checkpoint_every == 0 or last
            to_log = step % logging.every == 0 or to_save
            if to_log:
                try:
                    metrics = trainer.pop_metrics()
                except DivergedError as error:
                    roll_back(run, trainer, description, error)
                    continue
                if leader and held_out is not None and to_save:
                    metrics["held_out_loss"] = trainer.held_out_loss(held_out)
                if leader:
                    run.append(run.metrics, metrics)
                    run.append(run.timings, {"step": step, "seconds": round(time.monotonic() - start, 3)})
                    tracker.log(metrics)
                note = f"loss {metrics['loss']:.4f}" if metrics["loss"] is not None else "loss not finite"
            progress.update(step, note)
            if leader and to_save:
                save(run, trainer, description, held_out, logging.keep)
            if leader and (step == num_steps // 4 or last):
                draw_demo(trainer, run.samples / f"training-step-{step:09d}.png")
            if trainer.world.size == 1 or to_log:
                stop = trainer.world.any(interruption.signal is not None, trainer.device)
                received = (interruption.signal or signal.SIGTERM) if stop else None
        if received is not None and leader:
            save(run, trainer, description, held_out, logging.keep)
    return received


def save(run: RunFolder, trainer: Trainer, description: dict[str, Any], held_out: ArrayData | None, keep: int) -> None:
    """Writes the checkpoint of the step that is reached, and removes those that are not kept.

    Beside the state of the run it says which samples of the data set were held out.
    """
    step, tensors = trainer.step_number, trainer.state()
    if held_out is not None and held_out.index is not None:
        tensors["held_out"] = held_out.index
    checkpoint.save(run.checkpoint_path(step), step, description, tensors)
    run.retain(keep, step)


def describe_run(trainer: Trainer, config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    data = trainer.data
    contents = {"values": data.values} | ({} if data.labels is None else {"labels": data.labels})
    return {
        "model": checkpoint.describe_model(trainer.model),
        "data": {
            "center": data.scaling.center,
            "scale": data.scaling.scale,
            "low": data.values.min().item(),
            "high": data.values.max().item(),
            "std": data.std(),
            "num_classes": data.num_classes,
            "quantized": not data.values.is_floating_point(),
            "digest": checkpoint.digest(contents),
        },
        "config": config,
    }


def draw_demo(trainer: Trainer, path: Path) -> None:
    """A quick look at what the averaged model has learned: 20 Heun steps."""
    data = trainer.data
    labels = demo_labels(DEMO_SAMPLES, data.num_classes)
    x, _ = sample(trainer.ema_model, Heun(), DEMO_SAMPLES, cond=labels)
    raw = data.scaling.to_raw(x.cpu())
    low, high = data.values.min().item(), data.values.max().item()
    save_picture(path, raw, labels, low, high, data.num_classes)

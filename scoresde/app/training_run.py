"""Training in a run's folder: from a configuration to checkpoints, whatever kind of model it is.

A run that is killed goes on where it stopped, and one that is trained stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from ml_collections import ConfigDict

from scoresde import checkpoint
from scoresde.app.conversion import read_data
from scoresde.app.device import choose_threads, fast_bfloat16
from scoresde.app.init_from import RECORD, Origin
from scoresde.app.interrupt import Interruption
from scoresde.app.parts import check_same_parts
from scoresde.app.progress import Progress
from scoresde.app.run import Kind, Run
from scoresde.app.run_folder import RunFolder
from scoresde.app.tracking import Tracker
from scoresde.data.info import DataInfo, has_fingerprint
from scoresde.descriptions import check_described, describe_model
from scoresde.errors import require
from scoresde.models.latent_codec import AutoencoderCodec, Encoded
from scoresde.models.network import NetworkScoreModel
from scoresde.training import DivergedError, Trainer, join_world, save_snapshot
from sde_configs import build

MAX_NAMES = 12  # of classes that are printed
LOWEST_LR_SCALE = 1 / 8  # after three divergences


def train_in(
    folder: RunFolder,
    config: ConfigDict,
    device: torch.device,
    kind: Kind,
    origin: Origin | None = None,
) -> int:
    """Trains, or continues, the run in a folder; returns the exit status.

    Args:
        folder: of the run.
        config: all that the run depends on, beside its origin.
        device: where to compute.
        kind: what is trained.
        origin: the checkpoint with whose weights a new run begins; fresh weights by default.
    """
    for name in ("every", "checkpoint_every", "snapshot_every", "keep"):
        require(config.logging[name] >= 1, f"config.logging.{name}={config.logging[name]}: need at least 1")
    run = build_run(folder, config, device, origin, kind)
    trainer = run.trainer
    with _claimed(run):
        newest = resume(run)
        draw_lost_demo(run)
        if trainer.step_number >= trainer.options.num_steps:
            if run.leader:
                kind.finish(run)
                print(
                    f"{folder.path} is trained: {trainer.step_number} steps; --config.training.num_steps=MORE goes on"
                )
            return 0
        if run.leader:
            folder.write_config(run.description["config"])
            folder.cut_after(trainer.step_number)
            announce(run)
            if newest is not None:
                announce_learning_rate(run, newest)
        received = loop(run)
    if run.leader and received is None:
        print(f"trained; the checkpoint is {folder.checkpoint_path(trainer.step_number)}")
        print(kind.finish(run))
    elif run.leader:
        print(f"stopped at step {trainer.step_number}, saved in {folder.path}; the same command goes on from there")
    return 0 if received is None else 128 + received


def build_run(folder: RunFolder, config: ConfigDict, device: torch.device, origin: Origin | None, kind: Kind) -> Run:
    """The run as it begins: with fresh weights, or with those of its origin if the folder has no checkpoints yet."""
    world, device = join_world(device)
    plain_config = json.loads(config.to_json_best_effort())
    if origin is not None:
        origin.check_latents(config.data.autoencoder)
    data, held_out = read_data(config)
    if origin is not None and not config.data.center and not config.data.autoencoder:
        codec = origin.scaling(data)
        data = replace(data, codec=codec)
        held_out = None if held_out is None else replace(held_out, codec=codec)
    choose_threads(config.training.batch_size // world.size * math.prod(data.shape))
    info = DataInfo.of(data, held_out)  # before the model, which may need of the data what is found in this pass
    data, held_out, parts = kind.prepare(folder, config, data, held_out, device)
    model = kind.build_model(config, data).to(device)
    description = {
        "models": {model.role: describe_model(model)},
        "data": info.to_json(),
        "config": plain_config,
    } | parts
    if origin is not None:
        description[RECORD] = origin.to_json()
        if not folder.all_checkpoints():
            assert isinstance(model, NetworkScoreModel)
            origin.load_into(model, data.class_names)
    trainer = Trainer(model, data, build.build_objective(config), build.build_options(config), config.seed, world)
    return Run(folder, trainer, kind, config, description, info, data, held_out, origin)


@contextlib.contextmanager
def _claimed(run: Run) -> Iterator[None]:
    """Holds the folder for this run, of which it may hold the beginning; only the leader writes there."""
    if not run.leader:
        yield
        return
    run.folder.create()
    with run.folder.locked():
        run.folder.check_config(run.description["config"])
        yield


def announce(run: Run) -> None:
    """Says what is about to be trained, on what, where, and from what beginning."""
    trainer = run.trainer
    data = run.data
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{trainer.device}" + (f" in {trainer.world.size} processes" if trainer.world.size > 1 else "")
    since = f", from step {trainer.step_number}" if trainer.step_number else ""
    shape = "x".join(map(str, trainer.model.shape))
    if isinstance(data.codec, Encoded | AutoencoderCodec):
        shape = f"latents of {shape}"
    classes = f" of {data.num_classes} classes" if data.num_classes else ""
    if data.class_names:
        shown = ", ".join(data.class_names[:MAX_NAMES])
        classes += f" ({shown}{', ...' if len(data.class_names) > MAX_NAMES else ''})"
    captions = f" with {len(data.texts):,} captions" if data.texts else ""
    size = f"{num_parameters:,} parameters on {len(data):,} samples ({shape}){classes}{captions}"
    print(f"training {size}, {where}, in {run.folder.path}{since}", flush=True)
    if run.origin is not None:
        print(run.origin.announcement(trainer.model), flush=True)
    if run.config.training.precision == "bfloat16" and not fast_bfloat16(trainer.device):
        print(
            "training.precision=bfloat16: this device has no instructions for it; float32 is many times faster",
            flush=True,
        )


def announce_learning_rate(run: Run, newest: checkpoint.Checkpoint) -> None:
    """Says what the learning rate does where a run goes on with another number of steps, or had diverged before."""
    trainer = run.trainer
    options = trainer.options
    step = trainer.step_number
    planned = newest.description.get("config", {}).get("training", {}).get("num_steps", options.num_steps)
    before = replace(options, num_steps=planned)
    was, now = (f"{trainer.lr_scale * lr:.3g}" for lr in (before.lr_at(step - 1), options.lr_at(step)))
    if step > 0 and not math.isclose(before.lr_at(step), options.lr_at(step), rel_tol=1e-6):
        print(
            f"the learning rate goes from {was} to {now}, as its cosine now ends at step {options.num_steps}, not "
            f"{planned}; to go on at {was} instead, begin a new run: --init_from {run.folder.path} --workdir NEW "
            f"--config.training.lr={was} --config.training.lr_final=1",
            flush=True,
        )
    if trainer.lr_scale != 1:
        print(f"the learning rate is {trainer.lr_scale:g} of the schedule's, since the run diverged", flush=True)


def resume(run: Run) -> checkpoint.Checkpoint | None:
    """Goes on from the newest whole checkpoint, if there is one, which must be of the same data; returns it.

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
        return None
    _check_continues(run, newest)
    run.trainer.load_state(newest.step, newest.tensors)
    return newest


def _check_continues(run: Run, newest: checkpoint.Checkpoint) -> None:
    """Raises `UsageError` if a checkpoint is of other data, in other units, or of a run with another beginning."""
    source = f"workdir={str(run.folder.path)!r}"
    data = newest.description.get("data", {})
    require(
        data.get("digest") == run.info.digest or has_fingerprint(run.data, data.get("digest")),
        f"{source}: its run was trained on other data; choose another --workdir",
    )
    held_out_digest = data.get("held_out_digest", "")
    require(
        held_out_digest in ("", run.info.held_out_digest)
        or (run.held_out is not None and has_fingerprint(run.held_out, held_out_digest)),
        f"{source}: the held-out samples of its run have changed; put them back as they were, or "
        "choose another --workdir",
    )
    require(
        RECORD not in newest.description or run.origin is not None,
        f"{source}: its run began from a checkpoint; go on by the same command, with --init_from",
    )
    described = newest.description["models"].get(run.trainer.model.role)
    check_described(described, f"checkpoint={str(newest.path)!r}: models.{run.trainer.model.role}")
    check_same_parts(newest.description, described, run.description, run.data.codec, source, run.folder.path)


def roll_back(run: Run, error: DivergedError) -> None:
    """Goes back to the last checkpoint with half the learning rate, three times at most; otherwise raises the error."""
    trainer = run.trainer
    scale = trainer.lr_scale / 2
    if trainer.options.on_divergence == "stop" or scale < LOWEST_LR_SCALE or resume(run) is None:
        raise error
    trainer.lr_scale = scale
    if run.leader:
        run.folder.cut_after(trainer.step_number)
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
        if run.origin is not None and trainer.step_number == 0:
            save_origin(run, tracker)
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
                if to_save:
                    metrics |= measure_held_out(run)
                log(run, metrics, time.monotonic() - start, tracker)
                note = f"loss {metrics['loss']:.4f}" if metrics["loss"] is not None else "loss not finite"
            progress.update(step, note)
            if trainer.options.ema_lengths and (step % logging.snapshot_every == 0 or last):
                save_snapshot(run.folder.snapshot_path(step), trainer, run.description)
            if to_save:
                save(run)
            if step in demo_steps(run):
                run.kind.draw(run)
            if trainer.world.size == 1 or to_log:
                stop = trainer.world.any(interruption.signal is not None, trainer.device)
                received = (interruption.signal or signal.SIGTERM) if stop else None
        if received is not None:
            save(run)
    return received


def save_origin(run: Run, tracker: Tracker) -> None:
    """Writes the checkpoint of step 0, with which the run no longer needs its origin, and the held-out loss there."""
    if run.leader:
        run.folder.cut_after(-1)
    if run.held_out is not None:
        log(run, {"step": 0} | measure_held_out(run), 0.0, tracker)
    save(run)


def measure_held_out(run: Run) -> dict[str, Any]:
    """The loss of the held-out samples, if there are any, and what else their kind of model is judged by."""
    if run.held_out is None:
        return {}
    return {"held_out_loss": run.trainer.held_out_loss(run.held_out)} | run.kind.measure(run, run.held_out)


def log(run: Run, metrics: dict[str, Any], seconds: float, tracker: Tracker) -> None:
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
    run.kind.complete(run)
    step = run.trainer.step_number
    tensors = run.trainer.state()
    if not run.leader:
        return
    if run.held_out is not None and run.held_out.index is not None:
        tensors["held_out"] = run.held_out.index
    checkpoint.save(run.folder.checkpoint_path(step), step, run.description, tensors)
    run.folder.retain(run.config.logging.keep, step)


def demo_steps(run: Run) -> tuple[int, int]:
    """The steps after which samples are drawn."""
    num_steps = run.trainer.options.num_steps
    return num_steps // 4, num_steps


def draw_lost_demo(run: Run) -> None:
    """Draws the picture of the step that is reached, if the run ended after the checkpoint and before the picture."""
    step = run.trainer.step_number
    lost = step > 0 and step in demo_steps(run) and not run.folder.demo(step).exists()
    if run.trainer.world.any(lost and run.leader, run.trainer.device):
        run.kind.draw(run)

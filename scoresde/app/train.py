"""`--mode train`: from a configuration to a trained model in a folder."""

from __future__ import annotations

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
from scoresde.training import Trainer
from sde_configs import build

DEMO_SAMPLES = 100


def train(config: ConfigDict, run: RunFolder, device: torch.device) -> int:
    """Trains, or continues, the run in a folder; returns the exit status."""
    for name in ("every", "checkpoint_every", "keep"):
        require(config.logging[name] >= 1, f"config.logging.{name}={config.logging[name]}: need at least 1")
    plain_config = json.loads(config.to_json_best_effort())
    data, held_out = build.build_data(config)
    choose_threads(config.training.batch_size * math.prod(data.shape))
    model = build.build_model(config, data).to(device)
    objective, settings = build.build_objective(config, model), build.build_settings(config)
    trainer = Trainer(model, data, objective, settings, config.seed)
    description = describe_run(trainer, plain_config)

    run.create()
    run.claim(plain_config)
    newest = run.newest_checkpoint()
    if newest is not None:
        trainer.load_state(newest.step, newest.tensors)
    run.cut_logs(trainer.step_number)
    if trainer.step_number >= settings.num_steps:
        print(f"{run.path} is trained: {trainer.step_number} steps; a larger --config.training.num_steps goes on")
        return 0

    num_parameters = sum(p.numel() for p in model.parameters())
    print(
        f"training {num_parameters:,} parameters on {len(data):,} samples, {device}, in {run.path}"
        + (f", from step {trainer.step_number}" if newest is not None else ""),
        flush=True,
    )
    start, last_loss = time.monotonic(), ""
    with (
        Interruption() as interruption,
        Tracker(config.logging.wandb, run.path, plain_config) as tracker,
        Progress("train", settings.num_steps, trainer.step_number) as progress,
    ):
        while trainer.step_number < settings.num_steps and interruption.signal is None:
            trainer.step()
            step, last = trainer.step_number, trainer.step_number == settings.num_steps
            to_save = step % config.logging.checkpoint_every == 0 or last
            if step % config.logging.every == 0 or to_save:
                metrics = trainer.pop_metrics()
                if held_out is not None and to_save:
                    metrics["held_out_loss"] = trainer.held_out_loss(held_out)
                run.append(run.metrics, metrics)
                run.append(run.timings, {"step": step, "seconds": round(time.monotonic() - start, 3)})
                tracker.log(metrics)
                last_loss = f"loss {metrics['loss']:.4f}"
            progress.update(step, last_loss)
            if to_save:
                save_checkpoint(run, trainer, description, config.logging.keep)
            if step == settings.num_steps // 4 or last:
                draw_demo(trainer, data, run.samples / f"training-step-{step:09d}.png")
        if interruption.signal is not None:
            save_checkpoint(run, trainer, description, config.logging.keep)

    if interruption.signal is not None:
        print(f"stopped at step {trainer.step_number}, saved in {run.path}; the same command goes on from there")
        return 128 + interruption.signal if interruption.signal != signal.SIGINT else 130
    print(f"trained; the checkpoint is {run.checkpoint_path(trainer.step_number)}")
    print(f"sample: python main.py --mode sample --sampler pc --workdir {run.path}")
    return 0


def save_checkpoint(run: RunFolder, trainer: Trainer, description: dict[str, Any], keep: int) -> None:
    """Writes the checkpoint of the step that is reached, and removes all but the last `keep`."""
    checkpoint.save(run.checkpoint_path(trainer.step_number), trainer.step_number, description, trainer.state())
    for old in run.all_checkpoints()[:-keep]:
        old.unlink()


def describe_run(trainer: Trainer, config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    data = trainer.data
    scaled = data.scaling.to_model(data.values)
    return {
        "model": checkpoint.describe_model(trainer.model),
        "data": {
            "center": data.scaling.center,
            "scale": data.scaling.scale,
            "low": data.values.min().item(),
            "high": data.values.max().item(),
            "std": scaled.std().item(),
            "num_classes": data.num_classes,
            "quantized": not data.values.is_floating_point(),
        },
        "config": config,
    }


def draw_demo(trainer: Trainer, data: ArrayData, path: Path) -> None:
    """A quick look at what the averaged model has learned: 20 Heun steps."""
    labels = demo_labels(DEMO_SAMPLES, data.num_classes)
    x = sample(trainer.ema_model, Heun(), DEMO_SAMPLES, cond=labels, device=trainer.device)
    raw = data.scaling.to_raw(x.cpu())
    low, high = data.values.min().item(), data.values.max().item()
    save_picture(path, raw, labels, low, high, data.num_classes)

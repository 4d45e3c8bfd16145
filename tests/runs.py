"""Small runs of the command line, which tests share, and what is asked of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import checkpoint
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.training import Trainer

ROOT = Path(__file__).parent.parent
TINY = ["--mode=train", "--device=cpu", "--config.training.num_steps=2", "--config.training.batch_size=32"]
DIGITS = [*TINY, "--sde=vp", "--config.network.channels=8", "--config.training.dequantize=True"]
SMALL_MLP = ["--config=toy", "--config.network.width=16", "--config.network.depth=1"]
TOY = [*TINY, *SMALL_MLP, "--config.training.num_steps=4"]
SMALL = ["--device=cpu", "--config=vp", "--config.training.num_steps=2", "--config.training.batch_size=32"]
AUTOENCODER = [
    *("--mode=train_autoencoder", *SMALL, "--config.network.channels=8", "--config.network.latent_channels=3"),
    *("--config.network.multipliers=(1,2)", "--config.network.num_blocks=1"),
]
OF_LATENTS = [*SMALL, "--config.data.autoencoder=runs/ae", "--config.network.channels=8"]
LATENT = ["--mode=train", *OF_LATENTS, "--config.network.label_dropout=0.1"]
LATENT_CLASSIFIER = ["--mode=train_classifier", *OF_LATENTS]
CAPTIONS = "--config.data.captions=digits"
TEXT_ENCODER = [
    *("--mode=train_text_encoder", *SMALL, CAPTIONS, "--config.network.width=16", "--config.network.depth=1"),
    "--config.network.max_length=12",
]
CAPTIONED = [
    *("--mode=train", *OF_LATENTS, CAPTIONS, "--config.data.text_encoder=runs/text"),
    *("--config.network.label_dropout=0.1", "--config.network.attention_levels=(1,)"),
]
LOGGED = [  # a run with lines of metrics, checkpoints and pictures on the way
    *("--mode=train", *SMALL_MLP, "--config.training.batch_size=32", "--config.training.num_steps=20"),
    *("--config.logging.every=3", "--config.logging.checkpoint_every=7"),
]
SAMPLE = ["--mode=sample", "--num_samples=6", "--num_steps=5", "--device=cpu"]


class Killed(BaseException):
    """Ends a command at once."""


@contextlib.contextmanager
def killed_at(monkeypatch, step):
    """While entered, a training is killed when it has taken so many steps, as the test expects."""
    take = Trainer.step

    def killed(trainer):
        if trainer.step_number == step:
            raise Killed
        take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Killed):
            yield


def newest(run):
    """The path of the newest checkpoint of the run `runs/NAME`."""
    return RunFolder(Path("runs") / run).all_checkpoints()[-1]


def drawn(output, *arguments):
    """The bytes of the numbers that a command of sampling wrote, and the samples."""
    assert main([*SAMPLE, "--workdir=runs/toy", f"--output={output}", *arguments]) == 0
    numbers = output.with_suffix(".npz")
    with np.load(numbers) as arrays:
        return numbers.read_bytes(), arrays["samples"]


def train_logged(folder, *arguments):
    """Trains the run that is logged, in a folder; its exit status."""
    return main([*LOGGED, "--workdir", str(folder), *arguments])


def records(run):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def logged_steps(run):
    """The steps of the lines of a run's metrics."""
    return [record["step"] for record in records(run)]


def final_tensors(folder):
    """What the last checkpoint of a run holds."""
    return checkpoint.load(RunFolder(folder).all_checkpoints()[-1]).tensors


def assert_same_run(one, other):
    """Two runs wrote the same metrics and ended with the same tensors."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    ends = final_tensors(one), final_tensors(other)
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def contents(folder):
    """The bytes of every file under a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_a_process(folder, *arguments):
    """Runs a command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


class TakesAFile:
    """A pickle of it makes a file as it is read."""

    def __reduce__(self):
        return open, ("made_by_a_pickle", "w")

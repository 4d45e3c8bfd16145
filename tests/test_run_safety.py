"""Nothing is lost: locks, retention, data that changed, divergence, kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_app import final_tensors, steps, train

from scoresde import checkpoint, data
from scoresde.app.run_folder import RunFolder
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer

ROOT = Path(__file__).parent.parent


def test_a_second_run_in_a_folder_is_refused_and_leaves_the_first_alone(tmp_path, capsys):
    run = RunFolder(tmp_path)
    run.create()
    partial = run.checkpoints / ".step-000000007.safetensors.partial"
    with run.locked():
        partial.write_bytes(b"being written")
        assert train(tmp_path) == 2
        assert "another run is writing there; wait, or choose another --workdir" in capsys.readouterr().err
        assert partial.exists()
    assert train(tmp_path) == 0  # the lock ends with its holder
    assert not partial.exists()


def test_a_dead_run_leaves_no_lock(tmp_path):
    holder = (
        f"import os\nfrom pathlib import Path\nfrom scoresde.app.run_folder import RunFolder\n"
        f"run = RunFolder(Path({str(tmp_path)!r}))\nrun.create()\nwith run.locked():\n    os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", holder], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert died.returncode == -9
    assert train(tmp_path) == 0


def test_the_checkpoint_of_the_least_held_out_loss_is_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.2])
    monkeypatch.setattr(Trainer, "held_out_loss", lambda *_: next(losses))
    arguments = ["--config.logging.checkpoint_every=4", "--config.logging.keep=2", "--config.training.num_steps=20"]
    assert train(tmp_path, *arguments) == 0
    kept = [path.name for path in RunFolder(tmp_path).all_checkpoints()]
    assert kept == [f"step-{step:09d}.safetensors" for step in (8, 16, 20)]


def test_a_checkpoint_says_which_samples_were_held_out(tmp_path):
    x, labels = np.arange(200.0).reshape(100, 2), np.arange(100) % 2
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    assert train(tmp_path / "run", f"--config.data.path={tmp_path / 'x.npz'}", "--config.data.held_out=0.3") == 0
    loaded = checkpoint.load(RunFolder(tmp_path / "run").all_checkpoints()[-1])
    held_out = loaded.tensors["held_out"]
    assert held_out.unique().numel() == 30
    train_part, held_part = data.load(path=str(tmp_path / "x.npz")).split(0.3)
    whole = data.load(path=str(tmp_path / "x.npz"))
    assert torch.equal(held_part.values, whole.values[held_out])
    rest = sorted(set(range(100)) - set(held_out.tolist()))
    assert torch.equal(train_part.values.sort(0).values, whole.values[rest].sort(0).values)


def test_a_run_does_not_go_on_with_other_data(tmp_path, capsys):
    file = tmp_path / "x.npy"
    values = np.random.default_rng(0).normal(size=(100, 2))
    np.save(file, values)
    arguments = [f"--config.data.path={file}", "--config.data.held_out=0.0"]
    assert train(tmp_path / "run", *arguments) == 0
    values[3, 1] += 1e-3
    np.save(file, values)
    assert train(tmp_path / "run", *arguments, "--config.training.num_steps=30") == 2
    assert "its run was trained on other data; choose another --workdir" in capsys.readouterr().err


def fail_from(monkeypatch, first_step, while_scale_above):
    """The loss is not a number from a step on, as long as the learning rate is too large."""
    at, step = DenoisingObjective.at, Trainer.step
    now = {}

    def noted(self):
        now["bad"] = self.step_number >= first_step and self.lr_scale > while_scale_above
        step(self)

    def broken(self, *arguments):
        return at(self, *arguments) * (torch.nan if now.get("bad") else 1.0)

    monkeypatch.setattr(Trainer, "step", noted)
    monkeypatch.setattr(DenoisingObjective, "at", broken)


ROLLBACK = ["--config.training.max_bad_steps=3", "--config.training.on_divergence=rollback"]


def test_a_run_that_diverges_goes_back_with_half_the_learning_rate(tmp_path, monkeypatch, capsys):
    fail_from(monkeypatch, first_step=9, while_scale_above=0.3)
    assert train(tmp_path, *ROLLBACK) == 0
    out = capsys.readouterr().out
    assert out.count("back at step 7 with 0.5 of the learning rate") == 1
    assert out.count("back at step 7 with 0.25 of the learning rate") == 1
    run = RunFolder(tmp_path)
    assert steps(run) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    records = {r["step"]: r for r in map(json.loads, run.metrics.read_text().splitlines())}
    assert not any("skipped" in record for record in records.values())
    assert all(torch.isfinite(tensor).all() for tensor in final_tensors(tmp_path).values())


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_a_run_that_goes_on_diverging_ends_with_a_diagnosis(tmp_path, monkeypatch, capsys, policy):
    fail_from(monkeypatch, first_step=9, while_scale_above=0.0)
    arguments = ["--config.training.max_bad_steps=3", f"--config.training.on_divergence={policy}"]
    assert train(tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert "steps before step 12 had no finite gradient: lower training.lr=" in err
    assert "Traceback" not in err
    assert out.count("back at step 7") == (3 if policy == "rollback" else 0)
    assert RunFolder(tmp_path).newest_checkpoint().step == 7  # the last good state is there


def test_killed_runs_end_as_an_undisturbed_one():
    """The short version of benchmarks/kill_test.py."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_test", "--kills=3", "--seed=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kills" in result.stdout
    assert "the end is that of an undisturbed run" in result.stdout

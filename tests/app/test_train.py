"""Training: what a run leaves, and that neither signals nor kills, damage or divergence lose anything of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import checkpoint, data
from scoresde.app import train as train_module
from scoresde.app.cli import main
from scoresde.app.interrupt import SIGNALS
from scoresde.app.run_folder import RunFolder
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer
from tests.runs import ROOT, SAMPLE, TOY, assert_same_run, contents, final_tensors, killed_at, logged_steps, records
from tests.runs import train_logged as train


def test_a_run_leaves_its_files(whole):
    run = RunFolder(whole)
    assert logged_steps(run) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    lines = records(run)
    assert all(record.keys() - {"held_out_loss"} == {"step", "loss", "lr", "grad_norm"} for record in lines)
    assert [r["step"] for r in lines if "held_out_loss" in r] == [7, 14, 20]
    assert [json.loads(line).keys() for line in run.timings.read_text().splitlines()] == [{"step", "seconds"}] * 9
    assert [p.name for p in run.all_checkpoints()] == ["step-000000014.safetensors", "step-000000020.safetensors"]
    assert sorted(p.name for p in run.samples.iterdir()) == [
        "training-step-000000005.png",
        "training-step-000000020.png",
    ]
    assert json.loads(run.config.read_text())["training"]["batch_size"] == 32
    assert not list(whole.rglob(".*"))


def test_equal_commands_write_equal_metrics(whole, tmp_path):
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_repeating_a_finished_command_changes_nothing(whole, capsys):
    before = contents(whole)
    assert train(whole) == 0
    assert "is trained: 20 steps" in capsys.readouterr().out
    assert contents(whole) == before


INTERRUPTIONS = [*((stop, signal.SIGINT) for stop in (1, 6, 7, 11, 19)), *((11, number) for number in SIGNALS[1:])]


@pytest.mark.parametrize(("stop", "number"), INTERRUPTIONS)
def test_an_interrupted_run_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch, capsys, stop, number):
    step = Trainer.step
    if signal.getsignal(number) == signal.SIG_IGN:  # as under nohup
        signal.signal(number, signal.SIG_DFL)

    def interrupted(trainer):
        step(trainer)
        if trainer.step_number == stop:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert train(tmp_path) == 128 + number
    assert f"stopped at step {stop}, saved in {tmp_path}; the same command goes on" in capsys.readouterr().out
    assert RunFolder(tmp_path).newest_checkpoint().step == stop
    assert train(tmp_path) == 0
    assert f"from step {stop}" in capsys.readouterr().out
    assert_same_run(tmp_path, whole)


def test_a_signal_while_a_picture_is_drawn_is_not_lost(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train_module.ScoreKind, "draw", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert train(tmp_path) == 130
    assert RunFolder(tmp_path).newest_checkpoint().step == 5
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(whole, tmp_path, monkeypatch):
    with killed_at(monkeypatch, 16):
        train(tmp_path)
    run = RunFolder(tmp_path)
    assert logged_steps(run) == [3, 6, 7, 9, 12, 14, 15]
    with open(run.metrics, "a") as file:
        file.write('{"step": 16, "lo')  # the write that was under way
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(whole, tmp_path, capsys):
    assert train(tmp_path) == 0
    run = RunFolder(tmp_path)
    run.all_checkpoints()[-1].write_bytes(b"half a file")
    capsys.readouterr()
    assert train(tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"skipped: .*step-000000020\.safetensors", out)
    assert "from step 14" in out
    assert_same_run(tmp_path, whole)


def test_a_checkpoint_just_written_is_never_removed(whole, tmp_path, monkeypatch):
    """Damaged files of later steps are set aside, and count neither as the last ones nor as the newest."""
    assert train(tmp_path) == 0
    run = RunFolder(tmp_path)
    first, last = run.all_checkpoints()
    for step in (16, 18, 20):
        run.checkpoint_path(step).write_bytes(b"half a file")
    written = []
    save = checkpoint.save

    def noted(path, *arguments):
        save(path, *arguments)
        written.append(path)

    retain = RunFolder.retain

    def checked(folder, *arguments):
        retain(folder, *arguments)
        assert written[-1].exists()

    monkeypatch.setattr(checkpoint, "save", noted)
    monkeypatch.setattr(RunFolder, "retain", checked)
    assert train(tmp_path, "--config.training.num_steps=20") == 0
    assert written
    assert [p.name for p in run.all_checkpoints()] == [first.name, last.name]
    assert sorted(p.name for p in run.checkpoints.glob("*.damaged")) == [
        f"step-{step:09d}.safetensors.damaged" for step in (16, 18, 20)
    ]
    assert_same_run(tmp_path, whole)


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(whole, tmp_path, capsys):
    assert train(tmp_path) == 0
    run = RunFolder(tmp_path)
    for path in run.all_checkpoints():
        path.write_bytes(b"half a file")
    before = contents(tmp_path)
    for _ in range(2):  # not at the second time either
        assert train(tmp_path) == 2
        err = capsys.readouterr().err
        assert "none of its 2 checkpoints can be read; choose another --workdir, or delete" in err
        assert contents(tmp_path) == before
    for path in run.all_checkpoints():
        path.unlink()
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_a_run_hides_labels_if_asked_to(tmp_path):
    assert train(tmp_path, "--config.network.label_dropout=0.3") == 0
    model = RunFolder(tmp_path).newest_checkpoint().model()
    assert model.denoise(torch.zeros(3, 2), 0.5).isfinite().all()
    assert main(["--mode=sample", f"--workdir={tmp_path}", "--num_samples=4", "--num_steps=5"]) == 0


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
    at = DenoisingObjective.at
    step = Trainer.step
    now = {}

    def noted(self):
        now["bad"] = self.step_number >= first_step and self.lr_scale > while_scale_above
        step(self)

    def broken(self, *arguments, **options):
        return at(self, *arguments, **options) * (torch.nan if now.get("bad") else 1.0)

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
    assert logged_steps(run) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    assert not any("skipped" in record for record in records(run))
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


@pytest.mark.parametrize("name", ["two words", "a 'quoted' \"name\"", "$HOME; echo", "plain"])
def test_the_command_that_is_printed_can_be_pasted_into_a_shell(tmp_path, capsys, name):
    assert main([*TOY, f"--workdir={tmp_path / name}"]) == 0
    command = re.search(r"^sample: (.*)$", capsys.readouterr().out, re.M)[1]
    python, program, *arguments = shlex.split(command)
    assert (python, program) == ("python", "main.py")
    assert main([*arguments, "--device=cpu", "--sampler=ddim", "--num_samples=3", "--num_steps=5"]) == 0
    assert (tmp_path / name / "samples" / "ddim-seed0.png").exists()


def test_more_steps_are_no_conflict_and_go_on(work, tmp_path, capsys):
    shutil.copytree("runs/toy", tmp_path / "run")
    arguments = [*TOY, f"--workdir={tmp_path / 'run'}", "--config.training.num_steps=6", "--config.logging.every=1"]
    assert main(arguments) == 0
    assert "from step 4" in capsys.readouterr().out
    assert logged_steps(RunFolder(tmp_path / "run")) == [4, 5, 6]
    assert RunFolder(tmp_path / "run").newest_checkpoint().step == 6


def test_flags_beat_overrides_beat_the_file(work, tmp_path):
    config = json.loads(Path("runs/toy/config.json").read_text())
    config["training"] |= {"lr": 0.25, "warmup_steps": 7}
    config["seed"] = 1
    (tmp_path / "own.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from sde_configs import toy\n\n\ndef get_config():\n    config = toy.get_config()\n"
        "    config.training.update(lr=0.25, warmup_steps=7, num_steps=4, batch_size=32)\n"
        "    config.seed = 1\n    return config\n"
    )
    for name in ("own.json", "own.py"):
        workdir = tmp_path / name.replace(".", "-")
        arguments = ["--config.training.lr", "0.125", "--config.seed=2", "--seed=3", f"--workdir={workdir}"]
        assert main(["--mode=train", f"--config={tmp_path / name}", *arguments, "--device=cpu"]) == 0
        used = json.loads((workdir / "config.json").read_text())
        assert (used["training"]["lr"], used["training"]["warmup_steps"], used["seed"]) == (0.125, 7, 3)


def test_an_sde_and_a_recipe_have_a_folder_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TOY, "--sde=ve", "--config.training.num_steps=1"]) == 0
    assert json.loads(Path("runs/toy-ve/config.json").read_text())["sde"]["name"] == "VESDE"
    capsys.readouterr()
    assert main(SAMPLE) == 0
    assert "using runs/toy-ve, step 1" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--mode=train", "--config=toy", "--config.network.width=32", "--device=cpu"]
    arguments += ["--config.training.batch_size=64", "--config.training.num_steps=600", "--config.logging.every=7"]
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "--workdir=stopped"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        metrics = Path("stopped/metrics.jsonl")
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = int(re.search(r"stopped at step (\d+), saved in stopped; the same command goes on", out)[1])
    assert 0 < stopped < 600
    assert "Traceback" not in err

    assert main([*arguments, "--workdir=stopped"]) == 0
    assert main([*arguments, "--workdir=whole"]) == 0
    assert RunFolder(Path("whole")).newest_checkpoint().step == 600
    assert_same_run(Path("stopped"), Path("whole"))

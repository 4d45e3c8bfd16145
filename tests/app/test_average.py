"""--mode average: snapshots of a run, and checkpoints with an average of any length."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from scoresde import checkpoint
from scoresde.app import training_run as train_module
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.training import Trainer, reconstruct
from tests.app.test_faults import CODES, POINTS, assert_named, inject
from tests.mistakes import assert_mistake
from tests.runs import SAMPLE, assert_same_run, contents, killed_at, train_logged

SNAPSHOTS = ["--config.training.ema_lengths=(0.05, 0.1)", "--config.logging.snapshot_every=4"]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of 20 steps with snapshots every 4."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    assert train_logged(folder, *SNAPSHOTS) == 0
    return folder


def snapshots(folder):
    """The bytes of each snapshot by its name."""
    return {path.name: content for path, content in contents(RunFolder(folder).snapshots).items()}


def test_all_snapshots_are_kept(averaged, whole):
    run = RunFolder(averaged)
    assert [path.name for path in run.all_snapshots()] == [
        f"step-0000000{step}.safetensors" for step in ("04", "08", "12", "16", "20")
    ]
    assert len(run.all_checkpoints()) == 2
    for path in run.all_snapshots():
        found = checkpoint.load(path)
        assert found.description["ema_lengths"] == [0.05, 0.1]
        assert {name.split(".")[0] for name in found.tensors} == {"power0", "power1"}
    last = checkpoint.load(run.all_checkpoints()[-1]).tensors
    for name, value in found.tensors.items():
        assert torch.equal(last[name], value), name
    plain = checkpoint.load(RunFolder(whole).all_checkpoints()[-1]).tensors
    for name, value in plain.items():  # the run is what it is without
        assert torch.equal(last[name], value), name


@pytest.mark.parametrize("stop", [4, 6, 14, 18])
def test_a_continued_run_has_the_same_snapshots(averaged, tmp_path, monkeypatch, stop):
    step = Trainer.step

    def interrupted(trainer):
        step(trainer)
        if trainer.step_number == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert train_logged(tmp_path, *SNAPSHOTS) == 130
    assert train_logged(tmp_path, *SNAPSHOTS) == 0
    assert_same_run(tmp_path, averaged)
    assert snapshots(tmp_path) == snapshots(averaged)


def test_a_killed_run_writes_later_snapshots_anew(averaged, tmp_path, monkeypatch):
    """It was killed at step 18: the last checkpoint is of step 14, the last snapshot of step 16."""

    with killed_at(monkeypatch, 18):
        train_logged(tmp_path, *SNAPSHOTS)
    run = RunFolder(tmp_path)
    stale = run.snapshot_path(16)
    assert stale.exists()
    stale.write_bytes(b"of another course")
    (run.snapshots / ".step-000000020.safetensors.partial").touch()  # the write that was under way
    assert train_logged(tmp_path, *SNAPSHOTS) == 0
    assert snapshots(tmp_path) == snapshots(averaged)


def test_a_snapshot_comes_before_the_checkpoint_of_its_step(tmp_path, monkeypatch):
    """So that a run killed between the two writes both."""
    seen = []
    save = train_module.save

    def noted(run):
        seen.append(len(run.folder.all_snapshots()))
        save(run)

    monkeypatch.setattr(train_module, "save", noted)
    assert train_logged(tmp_path, *SNAPSHOTS, "--config.logging.snapshot_every=7") == 0
    assert seen == [1, 2, 3]


def test_the_checkpoint_is_one_everywhere(averaged, tmp_path, capsys):
    assert main(["--mode=average", f"--workdir={averaged}", "--length=0.07"]) == 0
    out = capsys.readouterr().out
    path = RunFolder(averaged).checkpoints / "length-0.07-step-000000020.safetensors"
    assert f"{path}: the average of length 0.07 at step 20, from 5 snapshots" in out
    made = reconstruct(RunFolder(averaged).all_snapshots(), 0.07)
    loaded = checkpoint.load(path)
    assert loaded.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in made.tensors.items())
    assert RunFolder(averaged).newest_checkpoint().path != path
    assert main([*SAMPLE, f"--checkpoint={path}", f"--output={tmp_path / 'a.png'}"]) == 0
    evaluate = ["--mode=evaluate", "--metric=nll", "--num_samples=8", "--num_steps=5", "--device=cpu"]
    assert main([*evaluate, f"--checkpoint={path}", f"--output={tmp_path / 'a.json'}"]) == 0
    assert json.loads((tmp_path / "a.json").read_text())
    begun = [f"--init_from={path}", f"--workdir={tmp_path / 'new'}", "--config.training.num_steps=1", "--device=cpu"]
    assert main(["--mode=train", *begun]) == 0
    assert main(["--mode=average", f"--workdir={averaged}", "--length=0.07"]) == 0  # its own file is written over
    assert checkpoint.load(path).digest == loaded.digest


def test_an_earlier_step_and_another_place(averaged, tmp_path):
    arguments = ["--mode=average", f"--workdir={averaged}", "--length=0.1", "--step=12"]
    assert main([*arguments, f"--output={tmp_path}"]) == 0
    path = tmp_path / "length-0.1-step-000000012.safetensors"
    assert checkpoint.load(path).step == 12
    tracked = checkpoint.load(RunFolder(averaged).snapshot_path(12)).tensors
    for name, value in checkpoint.load(path).tensors.items():
        torch.testing.assert_close(value, tracked[name.replace("ema.", "power1.")], rtol=1e-6, atol=1e-7)


def test_mistakes_are_named(averaged, whole, tmp_path, capsys):
    average = ["--mode=average", f"--workdir={averaged}"]
    assert_mistake(capsys, average, r"length: give the standard deviation of the average .* --length 0\.07")
    assert_mistake(capsys, [*average, "--length=0.4"], r"length=0\.4: need 0 < length <= 0\.2887")
    assert_mistake(capsys, [*average, "--length=0.07", "--step=5"], r"step=5: there is no snapshot .* 4, 8, 12, 16, 20")
    assert_mistake(capsys, [*average, "--length=0.07", "--num_steps=5"], r"--mode average has --step")
    assert_mistake(capsys, [*average, "--length=0.07", "--config.seed=1"], r"takes no fields of the configuration")
    own = RunFolder(averaged).all_checkpoints()[-1]
    assert_mistake(capsys, [*average, "--length=0.07", f"--output={own}"], r"exists, and was not written by")
    without = ["--mode=average", f"--workdir={whole}", "--length=0.07"]
    assert_mistake(capsys, without, r"holds no snapshots of averages; train a run with --config\.training\.ema_lengths")
    train = ["--mode=train", "--config=toy", f"--workdir={tmp_path / 'new'}"]
    assert_mistake(capsys, [*train, "--config.logging.snapshot_every=0"], r"snapshot_every=0: need at least 1")
    assert_mistake(capsys, [*train, "--config.training.ema_lengths=(0.5,)"], r"ema_lengths=\(0\.5,\): need numbers")


def test_a_fault_at_a_snapshot_is_named_and_nothing_is_lost(averaged, tmp_path, monkeypatch, capsys):
    name = r"step-000000008\.safetensors"
    for code, point in zip(CODES, (*POINTS, *POINTS), strict=False):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            inject(patch, code, point, name)
            assert train_logged(tmp_path, *SNAPSHOTS) == 2
        assert_named(capsys, name, code)
        assert not list(tmp_path.rglob(".*.partial"))
    assert train_logged(tmp_path, *SNAPSHOTS) == 0
    assert_same_run(tmp_path, averaged)
    assert snapshots(tmp_path) == snapshots(averaged)


def test_a_fault_at_the_checkpoint_is_named_and_leaves_nothing(averaged, tmp_path, monkeypatch, capsys):
    for point in POINTS:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            inject(patch, CODES[0], point, r"a\.safetensors")
            arguments = ["--mode=average", f"--workdir={averaged}", "--length=0.07"]
            assert main([*arguments, f"--output={tmp_path / 'a.safetensors'}"]) == 2
        assert_named(capsys, r"a\.safetensors", CODES[0])
        assert not list(tmp_path.iterdir())

"""Where the files of a run lie: locks, retention, logs that are cut, configurations that are claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from scoresde import UsageError
from scoresde.app.run_folder import RunFolder, newest_run
from scoresde.training import Trainer
from tests.runs import ROOT, train_logged


def test_a_second_run_in_a_folder_is_refused_and_leaves_the_first_alone(tmp_path, capsys):
    run = RunFolder(tmp_path)
    run.create()
    partial = run.checkpoints / ".step-000000007.safetensors.partial"
    with run.locked():
        partial.write_bytes(b"being written")
        assert train_logged(tmp_path) == 2
        assert "another run is writing there; wait, or choose another --workdir" in capsys.readouterr().err
        assert partial.exists()
    assert train_logged(tmp_path) == 0  # the lock ends with its holder
    assert not partial.exists()


def test_a_dead_run_leaves_no_lock(tmp_path):
    holder = (
        f"import os\nfrom pathlib import Path\nfrom scoresde.app.run_folder import RunFolder\n"
        f"run = RunFolder(Path({str(tmp_path)!r}))\nrun.create()\nwith run.locked():\n    os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", holder], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert died.returncode == -9
    assert train_logged(tmp_path) == 0


def test_the_checkpoint_of_the_least_held_out_loss_is_kept(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.2])
    monkeypatch.setattr(Trainer, "held_out_loss", lambda *_: next(losses))
    arguments = ["--config.logging.checkpoint_every=4", "--config.logging.keep=2", "--config.training.num_steps=20"]
    assert train_logged(tmp_path, *arguments) == 0
    kept = [path.name for path in RunFolder(tmp_path).all_checkpoints()]
    assert kept == [f"step-{step:09d}.safetensors" for step in (8, 16, 20)]


def test_retain_keeps_what_was_written_even_among_later_steps(tmp_path):
    run = RunFolder(tmp_path)
    run.create()
    for step in (1, 2, 5, 6):
        run.checkpoint_path(step).touch()
    run.retain(2, written=2)
    assert [int(p.stem[5:]) for p in run.all_checkpoints()] == [2, 5, 6]


def test_a_copy_of_a_checkpoint_is_none_of_the_run_s(tmp_path, capsys):
    run = RunFolder(tmp_path)
    assert train_logged(tmp_path) == 0
    first = run.all_checkpoints()[-1]
    copies = [run.checkpoints / name for name in ("step-000000020 (copy).safetensors", "step-20.safetensors")]
    for copy in copies:
        copy.write_bytes(first.read_bytes())
    assert run.all_checkpoints()[-1] == first
    assert train_logged(tmp_path, "--config.training.num_steps=23", "--config.logging.keep=1") == 0
    assert all(copy.exists() for copy in copies)


@pytest.mark.parametrize("line", [b"not json\n", b"\xff\xfe\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "7"}\n', b"\n"])
def test_a_damaged_line_of_a_log_loses_no_other(tmp_path, capsys, line):
    run = RunFolder(tmp_path)
    assert train_logged(tmp_path) == 0
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    run.metrics.write_bytes(b"".join([*lines[:2], line, *lines[2:], b'{"step": 2']))  # and a half line at the end
    capsys.readouterr()
    assert train_logged(tmp_path, "--config.training.num_steps=22") == 0
    assert f"skipped: 1 damaged lines of {run.metrics}" in capsys.readouterr().out
    assert run.metrics.read_bytes().splitlines(keepends=True)[: len(lines)] == lines


def test_what_pilots_found_goes_with_its_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    run.create()
    for step in (1, 2):
        for suffix in ("safetensors", "pilots.json", "calibrated.json"):
            run.checkpoint_path(step).with_suffix(f".{suffix}").touch()
    run.retain(1, written=2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == [
        f"step-000000002.{suffix}" for suffix in ("calibrated.json", "pilots.json", "safetensors")
    ]


def test_logs_and_snapshots_are_cut_after_a_step_and_logs_of_broken_lines(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    run.timings.write_text('{"step": 1}\n[2]\n{"step": 2}\n')
    for step in (1, 2, 3):
        run.snapshot_path(step).touch()
    run.cut_after(2)
    assert run.all_snapshots() == [run.snapshot_path(step) for step in (1, 2)]
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert run.timings.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"its config\.json is damaged"):
        RunFolder(tmp_path).check_config({"seed": 0})


def test_how_long_to_train_and_how_to_log_and_sample_may_differ(tmp_path):
    run = RunFolder(tmp_path)
    config = {"seed": 0, "training": {"num_steps": 3, "lr": 0.1}, "logging": {"every": 1}, "sampling": {"compile": 0}}
    run.check_config(config)
    run.write_config(config)
    config = json.loads(json.dumps(config))
    config["training"]["num_steps"] = 5
    config["logging"]["every"] = 2
    config["sampling"]["compile"] = 1
    run.check_config(config)
    run.write_config(config)
    config["training"]["lr"] = 0.2
    with pytest.raises(UsageError, match=r"config\.training\.lr=0\.1, not 0\.2; choose another --workdir"):
        run.check_config(config)


def test_a_run_that_is_older_than_a_field_goes_on(tmp_path, capsys):
    assert train_logged(tmp_path) == 0
    run = RunFolder(tmp_path)
    config = json.loads(run.config.read_text())
    del config["network"]["label_dropout"], config["training"]["flip"], config["data"]["class_conditional"]
    run.config.write_text(json.dumps(config))
    assert train_logged(tmp_path) == 0
    run.config.write_text(json.dumps(config))
    capsys.readouterr()
    assert train_logged(tmp_path, "--config.network.label_dropout=0.1") == 2
    assert "config.network.label_dropout=0.0, not 0.1" in capsys.readouterr().err


def test_the_newest_run_is_the_one_whose_checkpoint_was_written_last(tmp_path):
    for age, name in enumerate(("b", "c", "a", "empty")):
        RunFolder(tmp_path / name).create()
        if name != "empty":
            path = RunFolder(tmp_path / name).checkpoint_path(1)
            path.touch()
            os.utime(path, (1000 - age, 1000 - age))
    assert newest_run(tmp_path).path.name == "b"
    os.utime(tmp_path / "c" / "checkpoints" / "step-000000001.safetensors", (2000, 2000))
    assert newest_run(tmp_path).path.name == "c"

"""The run's folder, progress, interruption, pictures and tracking."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import (
    MLP,
    VPSDE,
    NetworkScoreModel,
    NoiseParametrization,
    UsageError,
    checkpoint,
    save_model,
)
from scoresde.app import progress, tracking
from scoresde.app import train as train_module
from scoresde.app.cli import main
from scoresde.app.interrupt import Interruption
from scoresde.app.pictures import demo_labels, save_numbers, save_picture
from scoresde.app.progress import Progress
from scoresde.app.run_folder import RunFolder, newest_run
from scoresde.training import Trainer

TOY = [
    *("--mode", "train", "--config", "toy", "--config.network.width=16", "--config.network.depth=1"),
    *("--config.training.batch_size=32", "--config.training.num_steps=20", "--config.logging.every=3"),
    "--config.logging.checkpoint_every=7",
]


def train(folder, *arguments):
    return main([*TOY, "--workdir", str(folder), *arguments])


def steps(run):
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def final_tensors(folder):
    return checkpoint.load(RunFolder(folder).all_checkpoints()[-1]).tensors


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    ends = final_tensors(one), final_tensors(other)
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) == 0
    return folder


def test_a_run_leaves_its_files(whole):
    run = RunFolder(whole)
    assert steps(run) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert all(record.keys() - {"held_out_loss"} == {"step", "loss", "lr", "grad_norm"} for record in records)
    assert [r["step"] for r in records if "held_out_loss" in r] == [7, 14, 20]
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
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert train(whole) == 0
    assert "is trained: 20 steps" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stop", [1, 6, 7, 11, 19])
def test_an_interrupted_run_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch, capsys, stop, number):
    step = Trainer.step

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
        patch.setattr(train_module, "draw_demo", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert train(tmp_path) == 130
    assert RunFolder(tmp_path).newest_checkpoint().step == 5
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    step = Trainer.step

    def killed(trainer):
        if trainer.step_number == 16:
            raise Killed
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(Killed):
            train(tmp_path)
    run = RunFolder(tmp_path)
    with open(run.metrics, "a") as file:
        file.write('{"step": 16, "lo')  # the write that was under way
    assert steps_before_damage(run) == [3, 6, 7, 9, 12, 14, 15]
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def steps_before_damage(run):
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()[:-1]]


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


def test_retain_keeps_what_was_written_even_among_later_steps(tmp_path):
    run = RunFolder(tmp_path)
    run.create()
    for step in (1, 2, 5, 6):
        run.checkpoint_path(step).touch()
    run.retain(2, written=2)
    assert [int(p.stem[5:]) for p in run.all_checkpoints()] == [2, 5, 6]


def test_where_no_checkpoint_can_be_read_nothing_is_begun_anew(whole, tmp_path, capsys):
    assert train(tmp_path) == 0
    run = RunFolder(tmp_path)
    for path in run.all_checkpoints():
        path.write_bytes(b"half a file")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):  # not at the second time either
        assert train(tmp_path) == 2
        err = capsys.readouterr().err
        assert "none of its 2 checkpoints can be read; choose another --workdir, or delete" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for path in run.all_checkpoints():
        path.unlink()
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_a_run_that_is_older_than_a_field_goes_on(whole, tmp_path, capsys):
    assert train(tmp_path) == 0
    run = RunFolder(tmp_path)
    config = json.loads(run.config.read_text())
    del config["network"]["label_dropout"], config["training"]["flip"], config["data"]["class_conditional"]
    run.config.write_text(json.dumps(config))
    assert train(tmp_path) == 0
    run.config.write_text(json.dumps(config))
    capsys.readouterr()
    assert train(tmp_path, "--config.network.label_dropout=0.1") == 2
    assert "config.network.label_dropout=0.0, not 0.1" in capsys.readouterr().err


def test_a_model_saved_from_python_is_sampled_from_in_python(tmp_path, capsys):
    network = MLP(2, width=8, depth=1)
    path = tmp_path / "model.safetensors"
    save_model(NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (2,)), path)
    assert main(["--mode", "sample", "--checkpoint", str(path)]) == 2
    assert re.search(r"was saved from Python.*scoresde\.load_model\('.*'\)", capsys.readouterr().err)


def test_a_run_hides_labels_if_asked_to(tmp_path):
    assert train(tmp_path, "--config.network.label_dropout=0.3") == 0
    model = RunFolder(tmp_path).newest_checkpoint().model()
    assert model.denoise(torch.zeros(3, 2), 0.5).isfinite().all()
    assert main(["--mode=sample", f"--workdir={tmp_path}", "--num_samples=4", "--num_steps=5"]) == 0


def test_logs_are_cut_after_a_step_and_at_a_broken_line(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    run.timings.write_text('{"step": 1}\n[2]\n{"step": 2}\n')
    run.cut_logs(2)
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert run.timings.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"its config\.json is damaged"):
        RunFolder(tmp_path).claim({"seed": 0})


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


def test_the_first_signal_waits_and_the_second_does_not():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_keyboard_interrupt_elsewhere_is_130_too(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train", stop)
    assert main(["--mode", "train"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_progress_writes_plain_lines_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter([0.0, 2.0, 6.0, 6.0, 8.0, 9.0])  # start, no line, line (asked twice), no line, the last line
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("train", 10, initial=2) as shown:
        for count in (3, 5, 7):
            shown.update(count, f"loss {count}.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train 5/10 50%  loss 5.5  0.5 steps/s  10 s left",
        "train 7/10 70%  loss 7.5  0.6 steps/s  5 s left",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("train", 4) as shown:
        for count in range(1, 5):
            shown.update(count, f"loss {count}.5")
    err = capsys.readouterr().err
    assert "\r" in err
    assert re.search(r"train: 100%.*4/4 .*loss 4\.5", err)


@pytest.mark.parametrize("columns", [3, 10])
def test_a_column_of_the_picture_is_a_class(tmp_path, columns):
    labels = demo_labels(4 * columns + 1, columns)
    raw = labels[:, None, None, None].expand(-1, 1, 8, 8) * (16.0 / (columns - 1))
    save_picture(tmp_path / "p.png", raw, labels, 0.0, 16.0, columns)
    with Image.open(tmp_path / "p.png") as picture:
        grid = np.asarray(picture)
    assert grid.shape == (6 * (5 * 9 + 1), 6 * (columns * 9 + 1))
    for k in range(columns):
        column = grid[6 : 6 * (4 * 9), 6 * (9 * k + 1) : 6 * (9 * k + 9)]
        inside = column[np.arange(len(column)) % 54 < 48]
        assert (inside == round(255 * k / (columns - 1))).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 5), (3, 8, 8), (4, 8, 8), (2,), (1,), (5,), (1, 16), (2, 3, 3, 3)])
def test_data_of_any_shape_has_a_picture(tmp_path, shape):
    raw = torch.randn(120, *shape, generator=torch.Generator().manual_seed(0))
    save_picture(tmp_path / "p.png", raw, None, -2.0, 2.0, 0)
    with Image.open(tmp_path / "p.png") as picture:
        assert min(picture.size) > 50


def test_a_model_without_classes_has_no_demo_labels():
    assert demo_labels(5, 0) is None
    assert demo_labels(5, 3).tolist() == [0, 1, 2, 0, 1]


def test_numbers_hold_samples_labels_and_seeds(tmp_path):
    raw = torch.arange(6.0).reshape(3, 2)
    save_numbers(tmp_path / "with.npz", raw, torch.tensor([2, 0, 1]), 2**63)
    save_numbers(tmp_path / "without.npz", raw, None, 5)
    with np.load(tmp_path / "with.npz") as arrays:
        assert (arrays["samples"] == raw.numpy()).all()
        assert arrays["labels"].tolist() == [2, 0, 1]
        assert arrays["seeds"].tolist() == [[2**63, 0], [2**63, 1], [2**63, 2]]
    with np.load(tmp_path / "without.npz") as arrays:
        assert arrays["labels"].tolist() == [-1] * 3


class FakeWandb(types.ModuleType):
    """Stands in for wandb; what is in `broken` raises."""

    def __init__(self, *broken):
        super().__init__("wandb")
        self.broken, self.calls = broken, []
        self.Settings = lambda **_: self._do("Settings")

    def _do(self, name, result=None):
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken\nsecond line")
        return result

    def init(self, **_):
        return self._do("init", types.SimpleNamespace(log=self._log, finish=lambda: self._do("finish")))

    def _log(self, metrics, step):
        self.logged = (metrics, step)
        self._do("log")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_metrics_go_to_wandb(tmp_path, monkeypatch, capsys, mode):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    with tracking.Tracker(mode, tmp_path, {}) as tracker:
        tracker.log({"step": 3, "loss": 0.5})
    assert fake.calls == ["Settings", "init", "log", "finish"]
    assert fake.logged == ({"step": 3, "loss": 0.5}, 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["Settings", "init", "log", "finish"])
def test_a_wandb_that_fails_is_said_once_and_left_alone(tmp_path, monkeypatch, capsys, broken):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb(broken))
    with tracking.Tracker("online", tmp_path, {}) as tracker:
        tracker.log({"step": 1, "loss": 0.5})
        tracker.log({"step": 2, "loss": 0.5})
    assert capsys.readouterr().err == f"wandb: going on without it ({broken} is broken)\n"
    assert fake.calls.count(broken) == 1


@pytest.mark.parametrize("wandb", [FakeWandb("init"), FakeWandb("log"), None], ids=["init", "log", "not installed"])
def test_a_run_survives_wandb(whole, tmp_path, monkeypatch, capsys, wandb):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train(tmp_path, "--config.logging.wandb=online") == 0
    assert capsys.readouterr().err.count("wandb: going on without it") == 1
    assert_same_run(tmp_path, whole)


def test_a_mode_of_wandb_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"config\.logging\.wandb='on': need 'disabled', 'offline' or 'online'"):
        tracking.Tracker("on", tmp_path, {})

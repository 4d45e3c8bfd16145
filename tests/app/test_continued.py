"""A run that goes on with another length, other data or after a divergence: nothing jumps without a word."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from scoresde import checkpoint
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.codec import Scaling, same_scaling
from scoresde.training import Trainer, TrainingOptions
from tests.app.test_train import ROLLBACK, fail_from
from tests.mistakes import assert_mistake
from tests.runs import LOGGED, contents, logged_steps, records, train_logged

DECAY = ["--config.training.warmup_steps=4", "--config.training.lr=0.05", "--config.training.lr_final=0.1"]
SAID = re.compile(r"the learning rate goes from (\S+) to (\S+), as its cosine now ends at step (\d+), not (\d+);.*")
OPTIONS = TrainingOptions(num_steps=20, warmup_steps=4, lr=0.05, lr_final=0.1)


@pytest.mark.parametrize(("longer", "rises"), [(33, True), (200, True), (21, False)])
def test_a_finished_run_made_longer_says_what_the_learning_rate_does(tmp_path, capsys, longer, rises):
    assert train_logged(tmp_path, *DECAY) == 0
    every_step = ["--config.logging.every=1", f"--config.training.num_steps={longer}"]
    capsys.readouterr()
    if longer == 200:  # a part of it is enough
        assert train_until(tmp_path, 22, *DECAY, *every_step) == 130
    else:
        assert train_logged(tmp_path, *DECAY, *every_step) == 0
    was, now, end, planned = SAID.search(capsys.readouterr().out).groups()
    assert (int(end), int(planned)) == (longer, 20)
    rates = {record["step"]: record["lr"] for record in records(RunFolder(tmp_path))}
    assert float(was) == pytest.approx(rates[20], rel=5e-3)
    assert float(now) == pytest.approx(rates[21], rel=5e-3)
    assert (rates[21] > rates[20]) == rises
    new = replace(OPTIONS, num_steps=longer)
    assert rates[21] == pytest.approx(new.lr_at(20), rel=1e-12)


def train_until(folder, step, *arguments):
    """Trains and stops after a step, as by Ctrl-C."""
    take = Trainer.step

    def stopped(trainer):
        take(trainer)
        if trainer.step_number == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        return train_logged(folder, *arguments)


@pytest.mark.parametrize("arguments", [("--config.training.lr_final=1",), ("--config.training.warmup_steps=90",)])
def test_a_learning_rate_that_does_not_jump_is_not_spoken_of(tmp_path, capsys, arguments):
    """Neither where it stays the same, nor in a warm-up that goes on."""
    assert train_logged(tmp_path, *arguments) == 0
    assert train_logged(tmp_path, *arguments, "--config.training.num_steps=27") == 0
    assert "learning rate" not in capsys.readouterr().out


def test_a_run_shortened_on_its_way_says_so(tmp_path, capsys):
    assert train_until(tmp_path, 10, *DECAY) == 130  # the checkpoint is of step 7
    assert train_logged(tmp_path, *DECAY, "--config.training.num_steps=13") == 0
    was, now, end, planned = SAID.search(capsys.readouterr().out).groups()
    assert (int(end), int(planned)) == (13, 20)
    assert float(was) == pytest.approx(OPTIONS.lr_at(6), rel=5e-3)
    assert float(now) == pytest.approx(replace(OPTIONS, num_steps=13).lr_at(7), rel=5e-3)


def test_the_end_is_kept_as_the_message_says(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_logged("run", *DECAY) == 0
    assert train_until("run", 21, *DECAY, "--config.training.num_steps=50") == 130
    said = SAID.search(capsys.readouterr().out)
    flags = re.search(r"--init_from.*", said[0])[0].split()
    assert flags[:4] == ["--init_from", "run", "--workdir", "NEW"]
    assert main(["--mode=train", *flags]) == 0
    rates = [record["lr"] for record in records(RunFolder(tmp_path / "NEW")) if "lr" in record]
    assert rates[-3:] == [pytest.approx(OPTIONS.lr_at(19), rel=5e-3)] * 3


def test_a_run_that_diverged_before_says_its_share_of_the_learning_rate(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        fail_from(patch, first_step=9, while_scale_above=0.3)
        assert train_logged(tmp_path, *ROLLBACK) == 0
    capsys.readouterr()
    assert train_logged(tmp_path, *ROLLBACK, "--config.training.num_steps=24") == 0
    assert "the learning rate is 0.25 of the schedule's, since the run diverged" in capsys.readouterr().out
    assert logged_steps(RunFolder(tmp_path))[-1] == 24


def test_a_finished_run_that_is_asked_for_fewer_steps_stays_as_it_is(tmp_path, capsys):
    assert train_logged(tmp_path) == 0
    before = contents(tmp_path)
    assert train_logged(tmp_path, "--config.training.num_steps=11") == 0
    assert "is trained: 20 steps" in capsys.readouterr().out
    assert contents(tmp_path) == before


def write(path, values):
    np.save(path, values)
    return [*LOGGED, f"--config.data.path={path}", "--config.data.held_out=0.2"]


def test_a_run_does_not_go_on_with_other_held_out_samples(tmp_path, capsys):
    values = np.random.default_rng(1).normal(size=(90, 2))
    run = f"--workdir={tmp_path / 'run'}"
    arguments = write(tmp_path / "x.npy", values)
    assert train_logged(tmp_path / "run", *arguments[len(LOGGED) :]) == 0
    held_out = checkpoint.load(RunFolder(tmp_path / "run").all_checkpoints()[-1]).tensors["held_out"]
    values[held_out[4], 1] += 0.5
    arguments = write(tmp_path / "x.npy", values)
    message = r"the held-out samples of its run have changed; put them back as they were"
    assert_mistake(capsys, [*arguments, run, "--config.training.num_steps=26"], message)
    assert_mistake(capsys, ["--mode=evaluate", "--metric=nll", run], r"its data have changed since it was trained")


def test_a_run_does_not_go_on_in_other_units(tmp_path, capsys):
    """As with a version of this library that chooses another scaling."""
    assert train_logged(tmp_path) == 0
    for path in RunFolder(tmp_path).all_checkpoints():
        loaded = checkpoint.load(path)
        description = json.loads(json.dumps(loaded.description))
        description["models"]["score"]["codec"]["scale"] *= 1.25
        checkpoint.save(path, loaded.step, description, loaded.tensors)
    message = r"its run scales the data by Scaling\(.*\), which would now be Scaling\(.*--init_from"
    assert_mistake(capsys, [*LOGGED, f"--workdir={tmp_path}", "--config.training.num_steps=26"], message)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Scaling((3.0, -40.0), (0.5, 8.0)), True),
        (Scaling((3.0 + 1e-9, -40.0), (0.5, 8.0 * (1 + 1e-12))), True),
        (Scaling((3.001, -40.0), (0.5, 8.0)), False),
        (Scaling((3.0, -40.0), (0.5, 8.01)), False),
        (Scaling(3.0, 0.5), False),
    ],
)
def test_scalings_are_the_same_but_for_rounding(other, same):
    assert same_scaling(Scaling((3.0, -40.0), (0.5, 8.0)), other) == same

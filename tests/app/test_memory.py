"""What the commands ask of a network at a time: no more than a step of the run's training leaves memory for.

A step on 4 samples makes 16 of a forward pass and 4 through which is differentiated. What is always small is set to
nothing, so that small images show what holds for large ones.
"""

from __future__ import annotations

import shutil

import pytest

from scoresde import UNet, _batches
from scoresde.app import compare, densities, distances
from scoresde.app.cli import main
from scoresde.app.figures import score_field
from scoresde.metrics import train_classifier
from tests.networks_seen import most, watched
from tests.runs import DIGITS

TRAIN = [*DIGITS, "--config.training.batch_size=4", "--config.network.channels=4", "--workdir=run"]
COMMANDS = {
    "sample": ["--mode=sample", "--num_samples=40", "--num_steps=5"],
    "auto": ["--mode=sample", "--num_samples=40", "--sampler=auto", "--num_steps=5"],
    "evaluate": ["--mode=evaluate", "--num_samples=70", "--num_steps=5", "--dequantization=variational"],
    "compare": ["--mode=compare", "--num_samples=20"],
    "invert": ["--mode=invert", "--num_samples=40", "--num_steps=6"],
    "interpolate": ["--mode=interpolate", "--num_samples=10", "--num_steps=6"],
    "score_field": ["--mode=visualize", "--what=score_field"],
    "trajectories": ["--mode=visualize", "--what=trajectories", "--num_samples=20", "--num_steps=6"],
    "denoising": ["--mode=visualize", "--what=denoising", "--num_samples=20", "--num_steps=6"],
    "training": ["--mode=visualize", "--what=training"],
    "animation": ["--mode=visualize", "--what=training", "--output=training.gif"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run on digits in batches of 4."""
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(TRAIN) == 0
    return folder


@pytest.fixture
def calls(trained, tmp_path, monkeypatch):
    """The calls of U-Nets, in a copy of the run's folder; whatever is slow and no call of one is made short."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_batches, "SMALL", 1)
    monkeypatch.setattr(densities, "TRAINING_STEPS", 2)
    monkeypatch.setattr(distances, "train_classifier", lambda data: train_classifier(data, num_steps=1))
    monkeypatch.setattr(densities, "TERMS", 2)
    monkeypatch.setattr(compare, "COUNTS", (5,))
    monkeypatch.setattr(compare, "REFERENCE", 12)
    monkeypatch.setattr(score_field, "POINTS", 8)
    return watched(monkeypatch, UNet)


def test_held_out_loss_and_the_picture_of_training(calls):
    assert main([*TRAIN, "--workdir=other"]) == 0
    assert most(calls, graph=True) == 4
    assert 4 < most(calls) <= 16


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_keeps_to_the_memory_of_training(calls, command):
    assert main([*command, "--workdir=run", "--device=cpu"]) == 0
    assert 4 < most(calls) <= 16
    assert most(calls, graph=True) <= 4


@pytest.mark.slow
def test_calibration_keeps_to_it(calls):
    assert main(["--mode=calibrate", "--num_samples=64", "--num_steps=5", "--workdir=run", "--device=cpu"]) == 0
    assert 4 < most(calls) <= 16
    assert 0 < most(calls, graph=True) <= 4


@pytest.mark.parametrize("name", ["sample", "densities", "invert", "denoising"])
def test_a_command_obeys_the_user(calls, name):
    densities = [*COMMANDS["evaluate"], "--metric=nll,elbo,vlb", "--num_samples=20"]
    command = COMMANDS.get(name, densities)
    assert main([*command, "--workdir=run", "--device=cpu", "--config.sampling.batch_size=3"]) == 0
    assert max(call.count for call in calls) == 3


def test_a_run_in_micro_batches_is_evaluated_as_it_was_trained(calls):
    assert main([*TRAIN, "--config.training.accumulate=2", "--workdir=other"]) == 0
    assert most(calls, graph=True) == 2
    assert 2 < most(calls) <= 8
    calls.clear()
    assert main([*COMMANDS["sample"], "--workdir=other", "--device=cpu"]) == 0
    assert 2 < most(calls) <= 8

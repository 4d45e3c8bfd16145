"""The data that a trained model is asked about: the run's own, or a file that suits the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.app.cli import main
from scoresde.app.flags import TrainedFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.data import load
from tests.runs import TOY


@pytest.fixture(scope="module", autouse=True)
def files(runs):
    """Files to ask about, right and wrong ones."""
    x = np.random.default_rng(0).normal(size=(400, 2))
    digits = load("digits")
    images, labels = digits.values.numpy(), digits.labels.numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        np.savez("far.npz", x=x + 100)
        np.savez("nan.npz", x=np.where(np.arange(800).reshape(400, 2) == 7, np.nan, x))
        np.savez("digits.npz", x=images[:70], labels=labels[:70])
        np.savez("bright.npz", x=images[:70] + 9, labels=labels[:70])
        np.savez("unlabelled.npz", x=images[:70])
        np.savez("more_classes.npz", x=images[:70], labels=labels[:70] + 1)


def trained(run):
    return Trained.of(TrainedFlags(device="cpu", workdir=f"runs/{run}"), ())


def test_the_run_s_own_data_are_those_that_it_was_trained_on(work):
    found = trained("vp")
    train, held_out = own_data(found)
    assert (len(train), len(held_out)) == (1348, 449)
    assert torch.equal(held_out.index, found.checkpoint.tensors["held_out"])
    assert train.codec is held_out.codec is found.network_model.codec
    asked, source = asked_data(found, None)
    assert source == "held out"
    assert torch.equal(asked.values, held_out.values)


def test_a_file_is_taken_in_the_model_s_units_with_its_labels(work):
    found = trained("vp")
    data, source = asked_data(found, "digits.npz")
    digits = load("digits")
    assert source == "digits.npz"
    assert data.codec is found.network_model.codec
    x, labels = data.all()
    assert torch.equal(x, (digits.values[:70].float() - 8) / 8)
    assert torch.equal(labels, digits.labels[:70])


def test_labels_mean_nothing_to_a_model_without_classes(work, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(30, 2)), labels=np.arange(30) % 5)
    data, _ = asked_data(trained("points"), str(tmp_path / "x.npz"))
    assert data.cond is None


@pytest.mark.parametrize(
    ("run", "file", "message"),
    [
        ("toy", "gone.npz", r"input='gone\.npz'.*no such file"),
        ("toy", "digits.npz", r"input='digits\.npz': holds samples of shape \(1, 8, 8\); this model takes \(2,\)"),
        ("points", "far.npz", r"input='far\.npz': holds values from 9\d.* to 10\d.*bring them to that range"),
        ("vp", "bright.npz", r"input='bright\.npz': holds values from 9 to 25; the model was trained on 0 to 16"),
        ("points", "nan.npz", r"nan\.npz'.*1 of 400 samples hold NaN"),
        ("vp", "unlabelled.npz", r"trained with labels 0 to 9; give such labels"),
        ("vp", "more_classes.npz", r"trained with labels 0 to 9; give such labels"),
    ],
)
def test_a_file_that_does_not_suit_the_model_is_named(work, run, file, message):
    with pytest.raises(UsageError, match=message):
        asked_data(trained(run), file)


def test_data_that_changed_since_training_are_named(work, tmp_path, capsys):
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(400, 2)))
    arguments = [*TOY, f"--config.data.path={tmp_path / 'points.npz'}", f"--workdir={tmp_path / 'run'}"]
    assert main(arguments) == 0
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(500, 2)))
    capsys.readouterr()
    for mode in ("evaluate", "invert", "interpolate"):
        assert main([f"--mode={mode}", f"--workdir={tmp_path / 'run'}", "--device=cpu"]) == 2
        assert "its data have changed since" in capsys.readouterr().err

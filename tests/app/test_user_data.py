"""The data that a trained model is asked about: the run's own, or a file that suits the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.app.cli import main
from scoresde.app.flags import TrainedFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.data import load
from tests.mistakes import assert_mistake
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


@pytest.fixture(scope="module")
def years(runs):
    """A run on vectors whose labels are years."""
    x = np.random.default_rng(1).normal(size=(90, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        np.savez("years.npz", x=x, labels=np.array([1999, 2024, 2005])[np.arange(90) % 3])
        assert main([*TOY, "--config.data.path=years.npz", "--workdir=runs/years"]) == 0
        np.savez("some_years.npz", x=x[:8], labels=np.array([2024, 1999] * 4))
        np.savez("another_year.npz", x=x[:8], labels=np.array([2024, 1998] * 4))


def test_sparse_labels_are_classes_by_name(years, work):
    found = trained("years")
    assert (found.data.num_classes, found.data.class_names) == (3, ("1999", "2005", "2024"))
    assert found.conditions(4, "2024,1999").tolist() == [2, 0, 2, 0]
    with pytest.raises(UsageError, match=r"labels='0': unknown class '0': known are 1999, 2005, 2024"):
        found.conditions(4, "0")
    data, _ = asked_data(found, "some_years.npz")
    assert data.labels.tolist() == [2, 0] * 4
    with pytest.raises(UsageError, match=r"another_year\.npz': .*labels 1999, 2005, 2024; .*unknown class '1998'"):
        asked_data(found, "another_year.npz")


def test_data_that_moved_are_found_again_and_data_that_changed_are_not(years, work, tmp_path, capsys):
    with np.load("years.npz") as arrays:
        x, labels = arrays["x"], arrays["labels"]
    moved = tmp_path / "moved.npz"
    np.savez(moved, x=x, labels=labels)
    flags = TrainedFlags(device="cpu", workdir="runs/years")
    train, _ = own_data(Trained.of(flags, [f"--config.data.path={moved}"]))
    assert torch.equal(train.values, own_data(trained("years"))[0].values)
    goes_on = [*TOY, "--workdir=runs/years", "--config.training.num_steps=5"]
    assert main([*goes_on, f"--config.data.path={moved}"]) == 0
    np.savez(moved, x=x[::-1], labels=labels[::-1])
    with pytest.raises(UsageError, match="its data have changed since it was trained"):
        own_data(Trained.of(flags, [f"--config.data.path={moved}"]))
    capsys.readouterr()
    assert main([*goes_on, "--config.training.num_steps=6", f"--config.data.path={moved}"]) == 2
    assert "was trained on other data" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"gone\.npz.*if the data moved, give their place with --config\.data\.path"):
        own_data(Trained.of(flags, ["--config.data.path=gone.npz"]))


@pytest.fixture(scope="module")
def orphan(runs):
    """A run whose training data are gone, and samples like them."""
    x = np.random.default_rng(3).normal(size=(70, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        np.savez("lost.npz", x=x)
        assert main([*TOY, "--config.data.path=lost.npz", "--workdir=runs/lost"]) == 0
        Path("lost.npz").unlink()
        np.savez("like_lost.npz", x=x[:23])


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--num_samples=3", "--num_steps=5"],
        ["compare", "--num_samples=11"],
        ["invert", "--input=like_lost.npz", "--num_steps=6"],
        ["interpolate", "--input=like_lost.npz", "--num_samples=2", "--num_steps=6"],
        ["visualize", "--what=schedule", "--num_steps=5"],
        ["visualize", "--what=langevin", "--num_steps=5", "--num_samples=20"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
@pytest.mark.usefixtures("fits")
def test_what_needs_no_training_data_does_without(orphan, work, tmp_path, monkeypatch, arguments):
    for constant, value in (("COUNTS", (5, 6)), ("REFERENCE", 32)):
        monkeypatch.setattr(f"scoresde.app.compare.{constant}", value)
    mode, *rest = arguments
    place = ["--workdir=runs/lost", "--device=cpu", f"--output={tmp_path / 'a.png'}"]
    assert main([f"--mode={mode}", *rest, *place]) == 0
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("what", ["score_field", "trajectories", "density", "denoising", "training"])
def test_a_picture_of_lost_data_says_what_to_do(orphan, work, tmp_path, capsys, what):
    arguments = ["--mode=visualize", f"--what={what}", "--workdir=runs/lost", f"--output={tmp_path / 'a.png'}"]
    assert_mistake(capsys, arguments, r"data\.path='lost\.npz'.*no such file.*their place with --config\.data\.path")


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

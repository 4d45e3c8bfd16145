"""Runs that train a classifier: what they leave, that they go on with the same bytes, and how mistakes are named."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import VPSDE, load_classifier, load_model, models_in
from scoresde.app.cli import main
from scoresde.app.config import as_classifier, load_config
from scoresde.app.run_folder import RunFolder
from scoresde.training import Trainer
from tests.app.test_faults import assert_named, inject
from tests.mistakes import assert_mistake
from tests.processes import run
from tests.runs import LOGGED, SAMPLE, assert_same_run, contents, final_tensors, logged_steps, records

CLASSIFIER = ["--mode=train_classifier", "--device=cpu", *LOGGED[1:]]
LEVELS = {"noise_levels", "held_out_loss_by_level", "held_out_accuracy_by_level"}


def train(folder, *arguments):
    return main([*CLASSIFIER, "--workdir", str(folder), *arguments])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted; only read."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert train(folder) == 0
    return folder


def test_a_run_leaves_its_files(whole):
    run = RunFolder(whole)
    assert logged_steps(run) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
    scored = [record for record in records(run) if "held_out_loss" in record]
    assert [record["step"] for record in scored] == [7, 14, 20]
    for record in scored:
        assert record.keys() >= LEVELS
        assert len({len(record[name]) for name in LEVELS}) == 1
        assert record["held_out_loss_by_level"][-1] == pytest.approx(math.log(2), abs=0.05)  # moons, far in the noise
    assert sorted(path.name for path in run.samples.iterdir()) == [
        "training-step-000000005.png",
        "training-step-000000020.png",
    ]
    newest = run.all_checkpoints()[-1]
    assert models_in(newest) == {"classifier": "classifier"}
    assert load_classifier(newest).num_classes == 2


def test_it_learns_the_moons(tmp_path):
    longer = ["--config.training.num_steps=300", "--config.training.lr=5e-3", "--config.logging.checkpoint_every=300"]
    assert train(tmp_path, *longer, "--config.network.width=32") == 0
    last = records(RunFolder(tmp_path))[-1]
    accuracies = dict(zip(last["noise_levels"], last["held_out_accuracy_by_level"], strict=True))
    assert max(accuracy for level, accuracy in accuracies.items() if level < 0.1) > 0.9
    assert accuracies[max(accuracies)] < 0.65


def test_the_settings_are_those_of_classifiers_and_the_recipe_s_otherwise():
    recipe = load_config("smld", None)
    recipe.network.multipliers = (1, 3, 2)
    config = as_classifier(recipe.copy_and_resolve_references())
    expected = {"name": "UNetClassifier", "channels": 16, "multipliers": (1, 3, 2), "num_blocks": 1}
    assert config.network.to_dict() == expected
    assert (config.training.lr, config.training.weight_decay) == (3e-4, 0.05)
    assert (config.sde, config.parametrization) == (recipe.sde, recipe.parametrization)
    assert config.objective.to_dict() == {"name": "ClassificationObjective", "times": {"name": "LadderTimes"}}
    again = as_classifier(config.copy_and_resolve_references())
    again.training.lr = 1e-3
    assert as_classifier(again).training.lr == 1e-3  # of a classifier's own configuration nothing is changed


def test_it_is_trained_where_and_in_units_of_the_score_model(work):
    """In runs/<recipe>-classifier, on the same data in the same codec."""
    assert main([*CLASSIFIER, "--sde=ve", "--config=toy"]) == 0
    classifier = load_classifier(RunFolder(Path("runs/toy-ve-classifier")).all_checkpoints()[-1])
    assert type(classifier.sde).__name__ == "VESDE"
    header = json.loads(Path("runs/toy-ve-classifier/config.json").read_text())
    assert main([*LOGGED, "--sde=ve", "--config=toy", "--workdir=runs/score"]) == 0
    score = load_model(RunFolder(Path("runs/score")).all_checkpoints()[-1])
    assert (classifier.codec, classifier.sigma_data) == (score.codec, score.sigma_data)
    assert header["network"] == {"name": "MLPClassifier", "width": 16, "depth": 1}


def stop_after(monkeypatch, step, how):
    take = Trainer.step

    def stopped(trainer):
        take(trainer)
        if trainer.step_number == step:
            how()

    monkeypatch.setattr(Trainer, "step", stopped)


def killed():
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 11, 19])
@pytest.mark.parametrize("how", ["signal", "kill"])
def test_an_interrupted_run_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch, how, step):
    """A signal saves first; a kill goes back to the last checkpoint, or to the beginning."""
    with monkeypatch.context() as patch:
        stop_after(patch, step, killed if how == "kill" else lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(tmp_path) == 130
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)
    for picture in RunFolder(whole).samples.iterdir():
        assert (RunFolder(tmp_path).samples / picture.name).read_bytes() == picture.read_bytes()


def test_a_lost_picture_is_drawn_and_a_finished_run_stays(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = contents(tmp_path / "run")
    RunFolder(tmp_path / "run").demo(20).unlink()
    assert train(tmp_path / "run") == 0
    assert "is trained: 20 steps" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_without_held_out_samples_the_training_ones_are_drawn(tmp_path):
    assert train(tmp_path, "--config.data.held_out=0") == 0
    assert all("held_out_loss" not in record for record in records(RunFolder(tmp_path)))
    assert RunFolder(tmp_path).demo(20).exists()


@pytest.mark.parametrize("name", [r"step-000000014\.safetensors", r"training-step-000000005\.png"])
def test_a_fault_of_the_machine_is_one_line_and_the_run_goes_on(whole, tmp_path, monkeypatch, capsys, name):
    for code, point in ((errno.ENOSPC, "write"), (errno.EACCES, "rename")):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            inject(patch, code, point, name)
            assert train(tmp_path) == 2
        assert_named(capsys, name, code)
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_other_modes_pass_over_runs_of_classifiers(work, capsys):
    """Though theirs is the newest checkpoint."""
    assert main([*CLASSIFIER, "--workdir=runs/late-classifier"]) == 0
    later = max(path.stat().st_mtime for path in Path("runs").glob("*/checkpoints/*")) + 60
    for path in RunFolder(Path("runs/late-classifier")).all_checkpoints():
        os.utime(path, (later, later))
    capsys.readouterr()
    assert main(SAMPLE) == 0
    assert "using runs/" in (out := capsys.readouterr().out)
    assert "classifier" not in out
    for mode in ("sample", "evaluate", "visualize"):
        what = ["--what=training"] if mode == "visualize" else []
        message = r"holds a classifier and no score model; give a run of --mode train"
        assert_mistake(capsys, [f"--mode={mode}", *what, "--workdir=runs/late-classifier"], message)
    shutil.rmtree("runs/late-classifier")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory, whole):
    """Data that a classifier cannot learn, and runs that it cannot go on from."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(whole, folder / "run")
    x = np.random.default_rng(0).normal(size=(60, 2))
    np.savez(folder / "none.npz", x=x)
    np.savez(folder / "one.npz", x=x, labels=np.full(60, 3))
    np.savez(folder / "floats.npz", x=x, labels=np.linspace(0, 1, 60))
    np.savez(folder / "two.npz", x=x, labels=np.arange(60) % 2)
    return folder


MISTAKES = {
    "no labels": ("--config.data.path=none.npz", r"data: no labels; a classifier needs a class for each sample"),
    "labels left out": (
        "--config.data.class_conditional=False",
        r"data: no labels; .*config\.data\.class_conditional=False leaves them out",
    ),
    "one class": ("--config.data.path=one.npz", r"data: all samples are of class 3; .*at least two"),
    "float labels": ("--config.data.path=floats.npz", r"float64 and shape \(60,\); need 60 integers, one a sample"),
    "other data": ("--workdir=run --config.data.path=two.npz", r"workdir='run': its run was trained on other data"),
    "other settings": ("--workdir=run --config.network.width=8", r"config\.network\.width=16, not 8"),
    "network of a score model": ("--config.network.name=MLP", r"unknown config\.network\.name 'MLP'.*MLPClassifier"),
    "objective of a score model": (
        "--config.objective.name=DenoisingObjective",
        r"objective=DenoisingObjective: trains a NetworkScoreModel, and the model is a NoisyClassifier",
    ),
    "weighting": ("--config.objective.weighting.name=EDMWeighting", r"unknown field --config\.objective\.weighting"),
    "steps": ("--num_steps=5", r"num_steps=5: .*--mode train_classifier has --config\.training\.num_steps"),
    "origin": ("--init_from=run", r"init_from=run: belongs to --mode train; leave it out of --mode train_classifier"),
    "seed": ("--seed=-1", r"seed=-1: need 0 <= seed"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_in_one_line(wrong, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(wrong)
    before = contents(wrong)
    given = [] if "--workdir" in arguments else ["--workdir=new"]
    assert_mistake(capsys, [*CLASSIFIER, *given, *arguments.split()], message)
    assert contents(wrong) == before


def test_a_score_run_and_a_classifier_do_not_go_on_from_each_other(wrong, monkeypatch, capsys):
    monkeypatch.chdir(wrong)
    message = r"workdir='run': holds a run with config\.network\.name=MLPClassifier, not MLP"
    assert_mistake(capsys, [*LOGGED, "--workdir=run"], message)
    assert_mistake(
        capsys, ["--mode=train", "--init_from=run", "--workdir=other"], r"holds the models classifier; .*'score'"
    )
    assert_mistake(
        capsys,
        [*LOGGED, "--workdir=new", "--config.objective.name=ClassificationObjective"],
        r"objective=ClassificationObjective: trains a NoisyClassifier, and the model is a NetworkScoreModel",
    )


def test_a_loaded_classifier_knows_its_noise_levels(whole):
    classifier = load_classifier(RunFolder(whole).all_checkpoints()[-1])
    largest, smallest = VPSDE().span().noise_level.tolist()
    assert classifier.noise_range() == pytest.approx((smallest, largest))
    assert torch.isfinite(classifier.logits(torch.zeros(1, 2), VPSDE().level(torch.tensor(0.5)))).all()


def test_two_processes_train_as_one(whole, tmp_path):
    run(2, tmp_path, *CLASSIFIER, "--workdir=two")
    one, two = (records(RunFolder(folder))[-1] for folder in (whole, tmp_path / "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    one, two = (final_tensors(folder) for folder in (whole, tmp_path / "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)

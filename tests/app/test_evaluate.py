"""Evaluation: densities, bits, bounds and distances, as a table and JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from samplers import log_prob
from scoresde.app import densities, evaluate
from scoresde.app.cli import main
from scoresde.app.evaluate import METRICS, chosen
from scoresde.app.flags import TrainedFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data
from scoresde.data import load
from scoresde.metrics import train_classifier
from scoresde.metrics.classifier import FEATURES
from tests.mistakes import assert_mistake, with_defaults
from tests.runs import DIGITS, TOY


@pytest.fixture(scope="module", autouse=True)
def files(runs):
    """A run that held nothing out, and files to ask about."""
    digits = load("digits")
    images, labels = digits.values.numpy(), digits.labels.numpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        assert main([*TOY, "--config.data.held_out=0", "--workdir=runs/whole"]) == 0
        np.savez("digits.npz", x=images[:70], labels=labels[:70])
        np.savez("few_digits.npz", x=images[:20], labels=labels[:20])


def evaluated(output, *arguments):
    assert main(["--mode=evaluate", "--device=cpu", f"--output={output}", *arguments]) == 0
    return json.loads(Path(output).read_text())


def classifier_of(num_steps):
    """A judge that is trained for fewer steps."""
    return lambda train: train_classifier(train, num_steps=num_steps)


def test_what_was_measured_is_kept_if_the_next_metric_fails(work, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device", "classifier")

    monkeypatch.setattr(evaluate, "train_classifier", fail)
    output = tmp_path / "e.json"
    arguments = ["--mode=evaluate", "--device=cpu", "--sde=vp", "--num_steps=6", "--num_samples=80", "--sampler=ddim"]
    assert main([*arguments, f"--output={output}", "--metric=nll,frechet"]) == 2
    assert "log density, nats" in json.loads(output.read_text())["results"]


def test_images_are_evaluated_whole_in_nats_bits_and_distances(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "train_classifier", classifier_of(300))
    record = evaluated(tmp_path / "e.json", "--sde=vp", "--num_steps=6", "--sampler=ddim")
    shown = capsys.readouterr().out
    results = record["results"]
    assert record["samples"] == 449  # a quarter of 1,797
    assert record["quantization"] == {
        "levels": 17,
        "low": 0,
        "high": 16,
        "offset": -0.5,
        "dequantization": "uniform",
        "levels a model unit": 8.0,
    }
    assert "17 levels from 0 to 16, uniform dequantisation, offset -0.5" in shown
    assert "densities are those given the class" in shown
    assert "left out" not in shown
    for name in ("log density", "ELBO"):
        nats = results[f"{name}, nats per dimension"]
        bits = results[f"{name}, bits per dimension"]
        assert results[f"{name}, nats"]["value"] == pytest.approx(64 * nats["value"], rel=1e-6)
        assert bits["value"] == pytest.approx(-nats["value"] / math.log(2), rel=1e-4)  # in the data's units
        assert 0 < nats["standard error"] < 1
    parts = [results[f"  {name}, bits per dimension"]["value"] for name in ("L_T", "L_1 .. L_{T-1}", "L_0")]
    assert results["discrete bound, bits per dimension"]["value"] == pytest.approx(sum(parts), rel=1e-6)
    assert results["label agreement"]["value"] < 0.6 < results["  of the real samples"]["value"]
    assert results["Frechet distance (64 features)"]["value"] > results["  of training samples"]["value"]


def test_vectors_are_evaluated_in_nats_and_distance(work, tmp_path, capsys):
    record = evaluated(tmp_path / "e.json", "--workdir=runs/points", "--num_steps=12", "--sampler=ddim")
    shown = capsys.readouterr().out
    assert "bits" not in shown
    assert record["flow"]["divergence"] == "exact"
    assert record["standard error by probes and noise, nats per dimension"]["log density"] == 0
    assert {"log density, nats", "ELBO, nats", "sliced Wasserstein-2 distance"} <= set(record["results"])


def test_a_log_density_is_that_of_the_data_in_their_own_units(work, tmp_path, capsys):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2)) * [1.0, 3.0]
    found = []
    for name, factors in (("a", [1, 1]), ("b", [50, 0.25])):
        np.savez(tmp_path / f"{name}.npz", x=x * factors)
        run = str(tmp_path / name)
        assert main([*TOY, f"--config.data.path={tmp_path / name}.npz", f"--workdir={run}"]) == 0
        how = [f"--workdir={run}", "--metric=nll,elbo", "--num_steps=40"]
        found.append(evaluated(tmp_path / "e.json", *how)["results"])
        assert "nats: of densities in the data's units" in capsys.readouterr().out
    for name in ("log density", "ELBO"):
        one, other = (each[f"{name}, nats"]["value"] for each in found)
        assert other == pytest.approx(one - math.log(50 * 0.25), abs=1e-3)


def test_one_metric_alone_and_a_file_of_ones_own(work, tmp_path, monkeypatch):
    record = evaluated(tmp_path / "e.json", "--sde=vp", "--metric=bits", "--num_steps=6", "--input=digits.npz")
    assert list(record["results"]) == ["log density, bits per dimension"]
    assert record["samples"] == 70
    how = ["--sde=vp", "--metric=bits", "--num_steps=6"]
    other = evaluated(tmp_path / "e.json", *how, "--dequantization=truncated_normal")
    assert other["quantization"]["dequantization"] == "truncated_normal"
    monkeypatch.setattr(densities, "TRAINING_STEPS", 3)
    learned = evaluated(tmp_path / "e.json", *how, "--dequantization=variational", "--num_samples=9")
    assert learned["quantization"]["dequantization"] == "variational"
    few = evaluated(tmp_path / "e.json", "--workdir=runs/toy", "--metric=elbo", "--num_steps=6", "--num_samples=5")
    assert few["samples"] == 5


@pytest.mark.parametrize(
    ("few", "why"),
    [
        ("--num_samples=20", "num_samples: 20 samples; a Frechet distance in 64 features needs more than 64"),
        ("--input=few_digits.npz", "input: 20 samples; a Frechet distance in 64 features needs more than 64"),
    ],
)
def test_few_samples_have_all_metrics_but_a_frechet_distance(work, tmp_path, monkeypatch, capsys, few, why):
    monkeypatch.setattr(densities, "CHAIN", 20)
    monkeypatch.setattr(densities, "TERMS", 5)
    record = evaluated(tmp_path / "e.json", "--sde=vp", "--num_steps=6", few)
    assert f"left out: {why}\n" in capsys.readouterr().out
    assert record["left out"] == why
    assert record["samples"] == 20
    assert {"log density, nats", "ELBO, nats", "discrete bound, bits per dimension"} <= set(record["results"])
    assert not any("Frechet" in name for name in record["results"])


def test_a_frechet_distance_of_just_enough_samples_is_taken(work, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "train_classifier", classifier_of(20))
    how = ["--sde=vp", "--metric=frechet", "--sampler=ddim", "--num_steps=5", f"--num_samples={FEATURES + 1}"]
    record = evaluated(tmp_path / "e.json", *how)
    assert record["drawn"]["samples"] == FEATURES + 1
    assert math.isfinite(record["results"]["Frechet distance (64 features)"]["value"])


@pytest.fixture(scope="module")
def orphans(runs):
    """Runs on images and on vectors whose training data are gone, and on vectors whose data have changed since."""
    digits = load("digits")
    x = np.random.default_rng(5).normal(size=(90, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        np.savez("gone.npz", x=digits.values.numpy()[:300], labels=digits.labels.numpy()[:300])
        for name in ("gone_points", "changed_points"):
            np.savez(f"{name}.npz", x=x)
            assert main([*TOY, f"--config.data.path={name}.npz", f"--workdir=runs/{name}"]) == 0
        assert main([*DIGITS, "--config.data.path=gone.npz", "--workdir=runs/gone"]) == 0
        Path("gone.npz").unlink()
        Path("gone_points.npz").unlink()
        np.savez("changed_points.npz", x=x[::-1])
        np.savez("given.npz", x=x[:31])


def test_without_the_training_data_a_file_is_evaluated_as_far_as_it_can_be(
    orphans, work, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(densities, "CHAIN", 20)
    monkeypatch.setattr(densities, "TERMS", 5)
    how = ["--num_steps=7", "--sampler=ddim"]
    for run, file, reason, left in (
        ("gone", "digits.npz", "no such file", "the Frechet distance, the mean and covariance of the prior"),
        ("gone_points", "given.npz", "no such file", "the distance of training samples, the mean and covariance of"),
        ("changed_points", "given.npz", "have changed since", "the distance of training samples, the mean and"),
    ):
        record = evaluated(tmp_path / "e.json", f"--workdir=runs/{run}", f"--input={file}", *how)
        shown = capsys.readouterr().out
        assert f"left out: {left}" in shown
        assert reason in record["left out"]
        assert record["flow"]["prior"] == "prior of the data's deviation alone"
        found = set(record["results"])
        assert {"log density, nats", "ELBO, nats"} <= found
        assert ("discrete bound, bits per dimension" in found) == (run == "gone")
        assert ("sliced Wasserstein-2 distance" in found) == (run != "gone")
        assert "  of training samples" not in found
        assert all(math.isfinite(result["value"]) for result in record["results"].values())
    bound = evaluated(tmp_path / "e.json", "--workdir=runs/gone", "--input=digits.npz", "--metric=vlb")
    assert "left out" not in bound  # it needs no training data


def test_without_the_training_data_the_density_is_that_under_the_default_prior(orphans, work, tmp_path):
    arguments = ["--workdir=runs/gone_points", "--input=given.npz", "--metric=nll", "--num_steps=9"]
    value = evaluated(tmp_path / "e.json", *arguments)["results"]["log density, nats"]["value"]
    trained = Trained.of(TrainedFlags(device="cpu", workdir="runs/gone_points"), ())
    x = asked_data(trained, "given.npz")[0].all()[0]
    expected = log_prob(trained.model, x, num_evaluations=9).log_prob.mean().item()
    assert value == pytest.approx(expected - trained.network_model.codec.log_volume(trained.model.shape), rel=1e-5)


def test_all_metrics_are_those_that_the_data_allow(work):
    digits, points = load("digits"), load("moons")
    assert chosen("all", digits) == ["nll", "bits", "elbo", "vlb", "frechet"]
    assert chosen("all", points) == ["nll", "elbo", "sw2"]
    assert chosen("vlb,nll", digits) == ["vlb", "nll"]
    assert {name for data in (digits, points) for name in chosen("all", data)} == set(METRICS)


MISTAKES = {
    "metric": ("--metric=nil", r"unknown metric 'nil': did you mean 'nll'"),
    "bits of floats": ("--workdir=runs/points --metric=bits", r"metric='bits': the data are not whole numbers.*nll"),
    "bound of floats": ("--workdir=runs/points --metric=vlb", r"metric='vlb': the data are not whole numbers.*nll"),
    "frechet of vectors": ("--metric=frechet", r"metric='frechet': .*labelled images.*sw2"),
    "sw2 of images": ("--workdir=runs/vp --metric=sw2", r"metric='sw2': it is for vectors.*frechet"),
    "dequantization": ("--dequantization=none", r"unknown dequantization 'none'"),
    "sampler": ("--sampler=pcc", r"unknown sampler 'pcc': did you mean 'pc'"),
    "no samples": ("--num_samples=1", r"num_samples=1: need at least 2"),
    "evaluations": ("--num_steps=2 --metric=nll", r"num_evaluations=2: need at least 5"),
    "few drawn": (
        "--workdir=runs/vp --metric=nll,frechet --num_samples=30",
        r"metric='frechet': num_samples: 30 samples; a Frechet distance in 64 features needs more than 64",
    ),
    "few real": (
        "--workdir=runs/vp --metric=frechet --input=few_digits.npz",
        r"metric='frechet': input: 20 samples; a Frechet distance in 64 features needs more",
    ),
    "nothing held out": ("--workdir=runs/whole", r"held out no samples.*--input FILE"),
    "frechet of lost data": (
        "--workdir=runs/gone --metric=frechet --input=digits.npz",
        r"metric='frechet': needs the training data; data\.path='gone\.npz'.*no such file.*--config\.data\.path",
    ),
    "dequantisation by lost data": (
        "--workdir=runs/gone --dequantization=variational --metric=bits --input=digits.npz",
        r"dequantization='variational': needs the training data; data\.path='gone\.npz'",
    ),
    "held out of lost data": (
        "--workdir=runs/gone",
        r"data\.path='gone\.npz': .*give their place with --config\.data\.path; or give other samples with --input",
    ),
    "output": ("--output=x.png", r"output='x\.png': need the name of a \.json file"),
    "flag of sampling": ("--labels=3", r"labels=3: belongs to --mode sample, --mode visualize"),
    "flag of training": ("--mode=train --metric=nll --workdir=x", r"metric=nll: belongs to --mode evaluate"),
    "input of training": ("--mode=train --input=x.npz --workdir=x", r"input=x\.npz: belongs to --mode evaluate"),
    "input of sampling": ("--mode=sample --input=x.npz", r"input=x\.npz: belongs to --mode evaluate, --mode invert"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_before_anything_is_computed(orphans, work, monkeypatch, capsys, arguments, message):
    if "evaluations" not in message:  # that the number of them is too small the density says itself
        monkeypatch.setattr(evaluate, "Evaluation", None)
    given = with_defaults(arguments, "--mode=evaluate", "--workdir=runs/toy", "--device=cpu")
    assert_mistake(capsys, given, message)

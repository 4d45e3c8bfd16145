"""Evaluation: densities, bits, bounds and distances, as a table and JSON."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from samplers import log_prob
from scoresde.app import densities, distances, evaluate, feature_files
from scoresde.app.cli import main
from scoresde.app.evaluate import chosen
from scoresde.app.flags import TrainedFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data
from scoresde.data import load
from scoresde.metrics import train_classifier
from scoresde.metrics.classifier import FEATURES
from scoresde.training.parallel import World
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

    monkeypatch.setattr(distances, "train_classifier", fail)
    output = tmp_path / "e.json"
    arguments = ["--mode=evaluate", "--device=cpu", "--sde=vp", "--num_steps=6", "--num_samples=80", "--sampler=ddim"]
    assert main([*arguments, f"--output={output}", "--metric=nll,fid"]) == 2
    assert "log density, nats" in json.loads(output.read_text())["results"]


def test_images_are_evaluated_whole_in_nats_bits_and_distances(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distances, "train_classifier", classifier_of(300))
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
    assert results["label agreement"]["value"] < 0.6 < results["label agreement"]["floor"]
    for name in ("Frechet distance", "kernel distance"):
        found = results[name]
        assert found["low"] <= found["extrapolated"] <= found["high"]
        assert found["low"] > found["floor"]  # two steps of training
    assert results["precision"]["high"] < results["precision"]["floor"]
    assert record["features"].startswith("classifier-")
    assert f"features {record['features']}" in shown
    assert "floor: 1000 training samples with the same" in shown
    assert not list((tmp_path / ".features").glob("*"))
    assert len(list(Path("runs/vp/samples/.features").iterdir())) == 2  # of held-out and of training samples


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


@pytest.mark.parametrize(("few", "which"), [("--num_samples=20", "num_samples"), ("--input=few_digits.npz", "input")])
def test_few_samples_have_all_metrics_but_a_frechet_distance(work, tmp_path, monkeypatch, capsys, few, which):
    why = f"metric='fid': {which}: 20 samples; a Frechet distance in 64 features needs more than 64; take kid"
    monkeypatch.setattr(densities, "CHAIN", 20)
    monkeypatch.setattr(densities, "TERMS", 5)
    record = evaluated(tmp_path / "e.json", "--sde=vp", "--num_steps=6", few)
    assert f"left out: {why}\n" in capsys.readouterr().out
    assert record["left out"] == why
    assert record["samples"] == 20
    assert {"log density, nats", "ELBO, nats", "discrete bound, bits per dimension"} <= set(record["results"])
    assert not any("Frechet" in name for name in record["results"])


def test_a_frechet_distance_of_just_enough_samples_is_taken(work, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "train_classifier", classifier_of(20))
    how = ["--sde=vp", "--metric=fid", "--sampler=ddim", "--num_steps=5", f"--num_samples={FEATURES + 1}"]
    record = evaluated(tmp_path / "e.json", *how)
    assert record["drawn"]["samples"] == FEATURES + 1
    assert math.isfinite(record["results"]["Frechet distance"]["value"])


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
        ("gone", "digits.npz", "no such file", "the mean and covariance of the prior"),
        ("gone_points", "given.npz", "no such file", "the mean and covariance of"),
        ("changed_points", "given.npz", "have changed since", "the mean and"),
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
        assert ("features='classifier': needs labelled training images" in shown) == (run == "gone")
        assert all(math.isfinite(result["value"]) for result in record["results"].values())
        assert all(result.get("floor") is None for result in record["results"].values())
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
    assert chosen("all", digits) == ["nll", "bits", "elbo", "vlb", "fid", "kid", "pr", "agreement"]
    assert chosen("all", points) == ["nll", "elbo", "sw2", "energy"]
    assert chosen("vlb,nll", digits) == ["vlb", "nll"]


MISTAKES = {
    "metric": ("--metric=nil", r"unknown metric 'nil': did you mean 'nll'"),
    "bits of floats": ("--workdir=runs/points --metric=bits", r"metric='bits': the data are not whole numbers.*nll"),
    "bound of floats": ("--workdir=runs/points --metric=vlb", r"metric='vlb': the data are not whole numbers.*nll"),
    "features of vectors": ("--metric=fid --features=efficientnet", r"metric='fid': features='efficientnet': .*values"),
    "features": ("--workdir=runs/vp --metric=kid --features=inceptoin", r"unknown features 'inceptoin'"),
    "features of no file": (
        "--workdir=runs/vp --metric=kid --features=a/b.pth",
        r"features='a/b\.pth': there is no such",
    ),
    "agreement": (
        "--workdir=runs/vp --metric=agreement --features=efficientnet",
        r"metric='agreement': needs --features classifier",
    ),
    "copies of lost data": (
        "--workdir=runs/gone_points --metric=copying --input=given.npz",
        r"metric='copying': needs the training data",
    ),
    "copies of the reference": (
        "--workdir=runs/vp --metric=copying --reference=train",
        r"metric='copying': compares samples with held-out data .*leave --reference=train out",
    ),
    "reference": ("--workdir=runs/vp --metric=kid --reference=nowhere", r"reference='nowhere': .*no such file"),
    "reference of another shape": (
        "--workdir=runs/vp --metric=kid --reference=given.npz",
        r"reference='given\.npz': holds samples of shape \(3,\); this model gives \(1, 8, 8\)",
    ),
    "lost reference": (
        "--workdir=runs/gone_points --metric=sw2 --input=given.npz --reference=train",
        r"reference='train': the training data cannot be had",
    ),
    "steps of a curve": ("--metric=sw2 --over_steps=5,x", r"over_steps='5,x': need numbers of steps between commas"),
    "both curves": ("--metric=sw2 --over_steps=5 --over_checkpoints=2", r"over_checkpoints=2: give one of the two"),
    "no checkpoints": ("--metric=sw2 --over_checkpoints=0", r"over_checkpoints=0: need at least 1"),
    "density as a curve": ("--metric=nll --over_steps=5", r"unknown metric of a curve 'nll'"),
    "dequantization": ("--dequantization=none", r"unknown dequantization 'none'"),
    "sampler": ("--sampler=pcc", r"unknown sampler 'pcc': did you mean 'pc'"),
    "no samples": ("--num_samples=1", r"num_samples=1: need at least 2"),
    "evaluations": ("--num_steps=2 --metric=nll", r"num_evaluations=2: need at least 5"),
    "few drawn": (
        "--workdir=runs/vp --metric=nll,fid --num_samples=30",
        r"metric='fid': num_samples: 30 samples; a Frechet distance in 64 features needs more than 64; take kid",
    ),
    "few real": (
        "--workdir=runs/vp --metric=fid --input=few_digits.npz",
        r"metric='fid': input: 20 samples; a Frechet distance in 64 features needs more",
    ),
    "nothing held out": ("--workdir=runs/whole", r"held out no samples.*--input FILE"),
    "frechet of lost data": (
        "--workdir=runs/gone --metric=fid --input=digits.npz",
        r"metric='fid': features='classifier': needs labelled training images; take efficientnet",
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
    "flag of sampling": ("--labels=3", r"labels=3: belongs to --mode sample, .*, --mode visualize"),
    "flag of training": ("--mode=train --metric=nll --workdir=x", r"metric=nll: belongs to --mode evaluate"),
    "input of training": ("--mode=train --input=x.npz --workdir=x", r"input=x\.npz: belongs to --mode evaluate"),
    "input of sampling": ("--mode=sample --input=x.npz", r"input=x\.npz: belongs to --mode evaluate, --mode invert"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_before_anything_is_computed(orphans, work, monkeypatch, capsys, arguments, message):
    if "evaluations" not in message:  # that the number of them is too small the density says itself
        monkeypatch.setattr(evaluate, "Evaluation", None)
        monkeypatch.setattr(distances.Drawing, "draw", None)
    given = with_defaults(arguments, "--mode=evaluate", "--workdir=runs/toy", "--device=cpu")
    assert_mistake(capsys, given, message)


def test_every_metric_of_a_run_and_what_it_is_called(work, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "train_classifier", classifier_of(150))
    names = "kid,dc,is,sw2,c2st,energy,mmd,classwise,copying"
    how = ["--sde=vp", f"--metric={names}", "--sampler=ddim", "--num_steps=5", "--num_samples=400"]
    results = evaluated(tmp_path / "e.json", *how)["results"]
    assert set(results) == {
        *("kernel distance", "density", "coverage", "Inception score", "sliced Wasserstein-2 distance"),
        *("classifier's accuracy", "energy distance", "maximum mean discrepancy"),
        *("nearer to training data than held-out data are", "nearer than all but 1 % of them"),
        *(f"kernel distance, class {label}" for label in range(10)),
    }
    assert results["classifier's accuracy"]["value"] > 0.9 > 0.6 > results["classifier's accuracy"]["floor"]
    assert results["nearer to training data than held-out data are"]["value"] < 0.2  # noise is far from everything


def test_the_reference_can_be_the_training_data_or_a_file(work, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "train_classifier", classifier_of(50))
    how = ["--sde=vp", "--metric=kid", "--sampler=ddim", "--num_steps=5", "--num_samples=100"]
    for reference, count in (("held_out", 449), ("train", 1348), ("digits.npz", 70)):
        record = evaluated(tmp_path / "e.json", *how, f"--reference={reference}")
        assert f"with {count} " in record["compared"]
        assert record["results"]["kernel distance"]["floor"] is not None


def test_a_command_that_is_killed_goes_on_and_gives_the_same_numbers(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distances, "train_classifier", classifier_of(20))
    how = ["--sde=vp", "--metric=fid,kid", "--sampler=ddim", "--num_steps=5", "--num_samples=70"]
    how.append("--config.sampling.batch_size=30")
    whole = evaluated(tmp_path / "whole.json", *how)["results"]
    write = feature_files.FeatureFiles.write
    shards = []

    def killed(self, first, samples):
        write(self, first, samples)
        shards.append(first)
        if len(shards) == 2:
            raise KeyboardInterrupt

    output = tmp_path / "e.json"
    with monkeypatch.context() as patch:
        patch.setattr(feature_files.FeatureFiles, "write", killed)
        assert main(["--mode=evaluate", "--device=cpu", f"--output={output}", *how]) == 130
    capsys.readouterr()
    assert evaluated(output, *how)["results"] == whole
    assert "going on: 2 of 3 shards are there" in capsys.readouterr().out


def test_two_processes_give_the_numbers_of_one(work, tmp_path, monkeypatch, capsys):
    """Each draws its share of the samples and looks at its share of the real ones; the leader, here last, measures."""
    monkeypatch.setattr(distances, "train_classifier", classifier_of(20))
    monkeypatch.setattr(feature_files, "PART", 64)
    how = ["--sde=vp", "--metric=fid,kid", "--sampler=ddim", "--num_steps=5", "--num_samples=70"]
    how.append("--config.sampling.batch_size=30")
    one = evaluated(tmp_path / "one.json", *how)["results"]
    shutil.rmtree("runs/vp/samples/.features")
    monkeypatch.setattr(World, "wait", lambda *_: None)
    for rank in (1, 0):
        monkeypatch.setattr(evaluate, "join_world", lambda device, rank=rank: (World(rank, 2), device))
        capsys.readouterr()
        assert main(["--mode=evaluate", "--device=cpu", f"--output={tmp_path / 'two.json'}", *how]) == 0
        assert ("numbers: " in capsys.readouterr().out) == (rank == 0)
    two = json.loads((tmp_path / "two.json").read_text())["results"]
    assert two.keys() == one.keys()
    for name, found in two.items():
        for column, value in found.items():
            assert value == pytest.approx(one[name][column], rel=1e-9)
    assert_mistake(capsys, ["--mode=evaluate", "--sde=vp", "--metric=nll"], "densities are computed by one process")


@pytest.mark.parametrize("axis", ["--over_steps=5,8", "--over_checkpoints=2"])
def test_a_curve_over_steps_or_checkpoints(work, tmp_path, capsys, axis):
    output = tmp_path / "curve.json"
    how = ["--workdir=runs/toy", "--metric=sw2,energy", "--num_samples=50", "--sampler=ddim", axis]
    record = evaluated(output, *how)
    shown = capsys.readouterr().out
    assert f"picture: {output.with_suffix('.png')}" in shown
    assert output.with_suffix(".png").stat().st_size > 5000
    assert record["axis"] == ("steps" if "steps" in axis else "step of training")
    assert "5" in record["curve"] or "4" in record["curve"]
    for rows in record["curve"].values():
        assert {"sliced Wasserstein-2 distance", "energy distance"} == set(rows)
        assert all(row["low"] <= row["high"] and row["floor"] is not None for row in rows.values())

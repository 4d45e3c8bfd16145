"""evaluate, encode and interpolate from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoresde.app import densities
from scoresde.app.cli import main
from scoresde.data import load
from tests.mistakes import assert_mistake, with_defaults

TINY = ["--mode=train", "--device=cpu", "--config.training.num_steps=2", "--config.training.batch_size=32"]
TOY = [*TINY, "--config=toy", "--config.network.width=16", "--config.network.depth=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on digits, moons and points without classes, and files to ask about."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TINY, "--sde=vp", "--config.network.channels=8", "--config.training.dequantize=True"]) == 0
        assert main(TOY) == 0
        x = np.random.default_rng(0).normal(size=(400, 2))
        np.savez("points.npz", x=x)
        assert main([*TOY, "--config.data.path=points.npz", "--workdir=runs/points"]) == 0
        assert main([*TOY, "--config.data.held_out=0", "--workdir=runs/whole"]) == 0
        np.savez("far.npz", x=x + 100)
        np.savez("nan.npz", x=np.where(np.arange(800).reshape(400, 2) == 7, np.nan, x))
        digits = load("digits")
        images, labels = digits.values.numpy(), digits.labels.numpy()
        np.savez("digits.npz", x=images[:70], labels=labels[:70])
        np.savez("few_digits.npz", x=images[:20], labels=labels[:20])
        np.savez("bright.npz", x=images[:70] + 9, labels=labels[:70])
        np.savez("unlabelled.npz", x=images[:70])
    return folder


@pytest.fixture
def work(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def evaluated(output, *arguments):
    assert main(["--mode=evaluate", "--device=cpu", f"--output={output}", *arguments]) == 0
    return json.loads(Path(output).read_text())


def test_images_are_evaluated_whole_in_nats_bits_and_distances(work, tmp_path, capsys):
    record = evaluated(tmp_path / "e.json", "--sde=vp", "--num_steps=6", "--sampler=ddim")
    shown, results = capsys.readouterr().out, record["results"]
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
    for name in ("log density", "ELBO"):
        nats = results[f"{name}, nats per dimension"]
        bits = results[f"{name}, bits per dimension"]
        assert results[f"{name}, nats"]["value"] == pytest.approx(64 * nats["value"], rel=1e-6)
        assert bits["value"] == pytest.approx(-nats["value"] / math.log(2) + 3, rel=1e-4)  # 8 levels a unit
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


def test_encoding_writes_noise_and_says_how_good_the_way_back_is(work, tmp_path, capsys):
    output = tmp_path / "encode.png"
    assert main(["--mode=encode", "--sde=vp", "--device=cpu", "--num_samples=12", f"--output={output}"]) == 0
    assert "round trip: RMS error" in capsys.readouterr().out
    with np.load(output.with_suffix(".npz")) as arrays:
        assert arrays["latents"].shape == (12, 1, 8, 8)
        assert np.abs(arrays["decoded"] - arrays["samples"]).max() < 1
        assert len(arrays["labels"]) == 12
    with Image.open(output) as picture:
        assert picture.height < picture.width  # two rows of ten


@pytest.mark.parametrize("run", ["vp", "toy", "points"])
def test_interpolation_draws_rows_between_samples(work, tmp_path, run):
    output = tmp_path / "way.png"
    arguments = [f"--workdir=runs/{run}", "--num_samples=3", "--num_steps=20", f"--output={output}"]
    assert main(["--mode=interpolate", "--device=cpu", *arguments]) == 0
    with np.load(output.with_suffix(".npz")) as arrays:
        assert arrays["samples"].shape[:2] == (3, 9)
    with Image.open(output) as picture:
        assert picture.width > 100


MISTAKES = {
    "metric": ("--metric=nil", r"unknown metric 'nil': did you mean 'nll'"),
    "bits of floats": ("--workdir=runs/points --metric=bits", r"metric='bits': the data are no whole numbers.*nll"),
    "bound of floats": ("--workdir=runs/points --metric=vlb", r"metric='vlb': the data are no whole numbers.*nll"),
    "frechet of vectors": ("--metric=frechet", r"metric='frechet': .*labelled images.*sw2"),
    "sw2 of images": ("--workdir=runs/vp --metric=sw2", r"metric='sw2': it is for vectors.*frechet"),
    "dequantization": ("--dequantization=none", r"unknown dequantization 'none'"),
    "no samples": ("--num_samples=1", r"num_samples=1: need at least 2"),
    "evaluations": ("--num_steps=2 --metric=nll", r"num_evaluations=2: need at least 5"),
    "no file": ("--input=gone.npz", r"input='gone\.npz'.*no such file"),
    "shape": (
        "--input=digits.npz",
        r"input='digits\.npz': holds samples of shape \(1, 8, 8\); this model takes",
    ),
    "range": ("--workdir=runs/points --input=far.npz", r"input='far\.npz': holds values from 9\d.* to 10\d.*range"),
    "brighter": ("--workdir=runs/vp --input=bright.npz", r"input='bright\.npz': holds values from 9 to 25.*0 to 16"),
    "nan": ("--workdir=runs/points --input=nan.npz", r"nan\.npz'.*1 of 400 samples hold NaN"),
    "labels": ("--workdir=runs/vp --input=unlabelled.npz", r"trained with labels 0 to 9; give such labels"),
    "few drawn": (
        "--workdir=runs/vp --metric=frechet --num_samples=30",
        r"num_samples: 30 samples; a Frechet distance in 64 features needs more than 64",
    ),
    "few real": (
        "--workdir=runs/vp --metric=frechet --input=few_digits.npz",
        r"input: 20 samples; a Frechet distance in 64 features needs more",
    ),
    "nothing held out": ("--workdir=runs/whole", r"held out no samples.*--input FILE"),
    "flag of sampling": ("--labels=3", r"labels=3: does nothing in evaluation"),
    "output": ("--output=x.png", r"output='x\.png': need the name of a \.json file"),
    "flag of training": ("--mode=train --metric=nll", r"metric=nll: belongs to --mode evaluate"),
    "input of training": ("--mode=train --input=x.npz", r"input=x\.npz: training takes --config\.data\.path"),
    "input of sampling": ("--mode=sample --input=x.npz", r"input=x\.npz: belongs to --mode evaluate"),
    "sampler of encoding": ("--mode=encode --sampler=pc", r"sampler=pc: does nothing in encode"),
    "too many pairs": ("--mode=interpolate --num_samples=10000", r"num_samples=10000: there are only \d+ pairs"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(work, capsys, arguments, message):
    given = with_defaults(arguments, "--mode=evaluate", "--workdir=runs/toy", "--device=cpu")
    assert_mistake(capsys, given, message)


def test_data_that_changed_since_training_are_named(work, tmp_path, capsys):
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(400, 2)))
    arguments = [*TOY, f"--config.data.path={tmp_path / 'points.npz'}", f"--workdir={tmp_path / 'run'}"]
    assert main(arguments) == 0
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(500, 2)))
    capsys.readouterr()
    assert main(["--mode=evaluate", f"--workdir={tmp_path / 'run'}", "--device=cpu"]) == 2
    assert "its data have changed since" in capsys.readouterr().err

"""Two sets of samples compared without a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoresde.app.cli import main
from scoresde.data import load
from scoresde.networks.efficientnet import installed
from tests.mistakes import assert_mistake


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Points and labelled digits in files."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    np.savez("points.npz", samples=generator.normal(size=(60, 2)), labels=np.full(60, -1))  # as --mode sample writes
    np.savez("others.npz", x=generator.normal(size=(80, 2)) + 2.0)
    np.savez("few.npz", x=generator.normal(size=(9, 2)))
    digits = load("digits")
    for name, part in (("one", slice(0, 300)), ("two", slice(300, 700))):
        np.savez(f"{name}.npz", x=digits.values[part].numpy(), labels=digits.labels[part].numpy())


def compared(*arguments):
    assert main(["--mode=evaluate", "--device=cpu", *arguments]) == 0
    return json.loads(Path("evaluate.json").read_text())


def test_points(capsys):
    record = compared("--input=points.npz", "--reference=others.npz")
    shown = capsys.readouterr().out
    assert "60 samples (points.npz) beside 80 (others.npz); features values/2" in shown
    assert set(record["results"]) == {"sliced Wasserstein-2 distance", "energy distance"}
    assert record["results"]["energy distance"]["low"] > 0
    more = compared("--input=points.npz", "--reference=others.npz", "--metric=fid,c2st,mmd")
    assert more["results"]["Frechet distance"]["value"] > 0.2


def test_each_comparison_is_in_the_units_of_its_reference():
    """What is kept of samples for one reference is not taken for another, of another scale."""
    np.savez("wide.npz", x=np.random.default_rng(3).normal(size=(70, 2)) * 10)
    how = ["--input=points.npz", "--metric=sw2"]
    name = "sliced Wasserstein-2 distance"
    first = compared(*how, "--reference=others.npz")["results"][name]["value"]
    wide = compared(*how, "--reference=wide.npz")["results"][name]["value"]
    assert compared(*how, "--reference=others.npz")["results"][name]["value"] == first
    shutil.rmtree(".features")
    assert compared(*how, "--reference=wide.npz")["results"][name]["value"] == wide


def test_labelled_images_by_a_classifier_that_is_trained_now(monkeypatch):
    from scoresde.app import distances
    from scoresde.metrics import train_classifier

    monkeypatch.setattr(distances, "train_classifier", lambda train: train_classifier(train, num_steps=200))
    how = ["--input=one.npz", "--reference=two.npz", "--features=classifier"]
    record = compared(*how, "--metric=fid,kid,pr,classwise")
    assert record["results"]["recall"]["value"] > 0.6
    assert "kernel distance, class 9" in record["results"]


@pytest.mark.skipif(not installed(), reason="needs scoresde[features]")
def test_folders_of_images_by_a_published_network(capsys):
    generator = np.random.default_rng(0)
    for folder, colour in (("a", 200), ("b", 90)):
        Path(folder).mkdir()
        for k in range(20):
            image = generator.integers(0, colour, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(f"{folder}/{k}.png")
    record = compared("--input=a", "--reference=b")
    assert set(record["results"]) == {"kernel distance", "precision", "recall"}
    shown = capsys.readouterr().out
    assert "left out: metric='fid': input: 20 samples" in shown
    assert "grey" not in shown
    assert record["features"].startswith("efficientnet-lite0-57934424/")
    assert record["results"]["kernel distance"]["low"] > 0
    how = ["--input=one.npz", "--reference=two.npz", "--metric=kid", "--num_samples=20"]
    assert compared(*how)["features"].endswith("/levels 0 to 16")
    assert "grey images are repeated in three channels" in capsys.readouterr().out
    Image.new("L", (16, 16)).save("a/grey.png")
    assert_mistake(
        capsys, ["--mode=evaluate", "--input=a", "--reference=b"], r"input='a': images differ: .*data\.channels=3"
    )


def test_classes_of_other_names_are_not_compared(capsys):
    for folder, classes in (("a", "xy"), ("b", "xz")):
        for name in classes:
            Path(folder, name).mkdir(parents=True)
            for k in range(10):
                Image.new("L", (4, 4), 9 * k).save(f"{folder}/{name}/{k}.png")
    how = ["--mode=evaluate", "--input=a", "--reference=b", "--features=values", "--metric=classwise"]
    assert_mistake(capsys, how, r"the classes are \('x', 'y'\) and \('x', 'z'\); need the same names")


MISTAKES = {
    "few": ("--input=few.npz --reference=others.npz --metric=kid", r"metric='kid': input: 9 samples; .*at least 16"),
    "shapes": ("--input=points.npz --reference=one.npz", r"input='points\.npz': holds samples of shape \(2,\)"),
    "empty folder": ("--input=empty --reference=others.npz", r"input='empty': holds 0 images and 0 parquet files"),
    "nothing there": ("--input=none --reference=others.npz", r"input='none': cannot be read: there is no such file"),
    "a density": ("--input=points.npz --reference=others.npz --metric=nll", r"unknown metric of two sets 'nll'"),
    "a model": ("--input=points.npz --reference=others.npz --sde=vp", r"sde='vp': belongs to a model"),
    "a field": (
        "--input=points.npz --reference=others.npz --config.sampling.threshold=static",
        r"--config\.sampling\.threshold: belongs to a model; here only fields of --config\.data",
    ),
    "fewer than features": (
        "--input=one.npz --reference=two.npz --metric=fid",
        r"metric='fid': input: 300 samples; a Frechet distance in 1280 features needs more than 1280; take kid",
    ),
    "classifier without labels": (
        "--input=images.npz --reference=images.npz --features=classifier --metric=kid",
        r"features='classifier': needs labelled training images",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(capsys, arguments, message):
    Path("empty").mkdir()
    np.savez("images.npz", x=load("digits").values[:30].numpy())
    assert_mistake(capsys, ["--mode=evaluate", "--device=cpu", *arguments.split()], message)

"""Data to noise and back, and from one sample to another."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app.cli import main
from scoresde.app.invert import COLUMNS, _pairs
from tests.mistakes import assert_mistake


def test_inversion_writes_noise_and_says_how_good_the_way_back_is(work, tmp_path, capsys):
    output = tmp_path / "invert.png"
    assert main(["--mode=invert", "--sde=vp", "--device=cpu", "--num_samples=12", f"--output={output}"]) == 0
    assert re.search(
        r"12 samples \(held out\), 64 evaluations each way\nround trip: RMS error", capsys.readouterr().out
    )
    with np.load(output.with_suffix(".npz")) as arrays:
        assert set(arrays) == {"latents", "samples", "returned", "labels"}
        assert arrays["latents"].shape == (12, 1, 8, 8)
        assert np.abs(arrays["returned"] - arrays["samples"]).max() < 1
        assert len(arrays["labels"]) == 12
    with Image.open(output) as picture:
        assert picture.height < picture.width  # two rows of ten


def test_more_evaluations_come_back_closer(work, tmp_path, capsys):
    errors = []
    for steps in (6, 24, 96):
        arguments = ["--mode=invert", "--sde=vp", "--device=cpu", "--num_samples=12", f"--num_steps={steps}"]
        assert main([*arguments, f"--output={tmp_path / 'a.png'}"]) == 0
        errors.append(float(re.search(r"RMS error (\S+) of", capsys.readouterr().out)[1]))
    assert errors[2] < errors[1] / 4 < errors[0] / 16  # of second order, at least first


def test_samples_of_a_file_are_inverted(work, tmp_path, capsys):
    x = np.random.default_rng(1).normal(size=(9, 2))
    np.savez(tmp_path / "x.npz", x=x)
    arguments = ["--mode=invert", "--workdir=runs/points", "--device=cpu", f"--input={tmp_path / 'x.npz'}"]
    assert main([*arguments, f"--output={tmp_path / 'a.png'}"]) == 0
    assert f"9 samples ({tmp_path / 'x.npz'})" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_allclose(arrays["samples"], x, rtol=1e-5, atol=1e-5)
        assert arrays["labels"].tolist() == [-1] * 9


@pytest.mark.parametrize("run", ["vp", "toy", "points"])
def test_interpolation_draws_rows_between_samples(work, tmp_path, run):
    output = tmp_path / "way.png"
    arguments = [f"--workdir=runs/{run}", "--num_samples=3", "--num_steps=20", f"--output={output}"]
    assert main(["--mode=interpolate", "--device=cpu", *arguments]) == 0
    with np.load(output.with_suffix(".npz")) as arrays:
        assert arrays["samples"].shape[:2] == (3, COLUMNS)
    with Image.open(output) as picture:
        assert picture.width > 100


def test_pairs_are_of_one_class_and_the_classes_take_turns():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1])
    index = _pairs(labels, 3)
    assert index.tolist() == [0, 1, 5, 2, 4, 6]  # first samples, then second ones: (0, 2), (1, 4), (5, 6)
    assert torch.equal(labels[index[:3]], labels[index[3:]])
    assert len(_pairs(labels, 9)) == 6  # there are no more
    assert len(_pairs(torch.arange(4), 1)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=invert", "--num_samples=0"], r"num_samples=0: need at least 1"),
        (["--mode=invert", "--num_steps=1"], r"num_evaluations=1"),
        (["--mode=invert", "--sampler=pc"], r"sampler=pc: belongs to --mode sample, --mode evaluate"),
        (["--mode=invert", "--output=x.jpg"], r"output='x\.jpg': need the name of a \.png file"),
        (["--mode=interpolate", "--num_samples=0"], r"num_samples=0: need at least 1 pair"),
        (["--mode=interpolate", "--num_samples=10000"], r"num_samples=10000: there are only \d+ pairs among 2500"),
        (["--mode=interpolate", "--labels=1"], r"labels=1: belongs to --mode sample, .*, --mode visualize"),
    ],
)
def test_mistakes_are_one_line(work, capsys, arguments, message):
    assert_mistake(capsys, [*arguments, "--workdir=runs/toy", "--device=cpu"], message)

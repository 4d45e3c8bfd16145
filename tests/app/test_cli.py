"""The command line as a whole: modes, help, the README's commands, and one line for every mistake."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from scoresde.app import sample as sample_module
from scoresde.app import train as train_module
from scoresde.app.cli import main
from tests.mistakes import assert_mistake
from tests.runs import in_a_process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=trian"], r"unknown mode 'trian': did you mean 'train'"),
        (["--mode=encode"], r"unknown mode 'encode': .*known are .*invert"),
        (["--sde=vp"], r"give --mode train, --mode train_classifier, --mode train_autoencoder"),
        (["--mode"], r"--mode.*--help"),
        (["--mode="], r"unknown mode ''"),
        (["--mode=trian", "--help"], r"unknown mode 'trian'"),
        (["--mode=train", "--workdirr=x"], r"unknown flag '--workdirr': did you mean '--workdir'"),
        (["--mode=sample", "--calibrated=off"], r"unknown flag '--calibrated'"),
        (["--mode=sample", "--output="], r"output='': is empty; give a value, or leave --output out"),
    ],
)
def test_a_mode_or_a_flag_that_is_wrong_or_missing_is_named(capsys, arguments, message):
    assert_mistake(capsys, arguments, message)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--helpfull"], ["help"]])
def test_help_shows_modes_flags_recipes_and_fields(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for expected in (
        *("python main.py --mode train --sde vp", "--num_samples", "toy", "--config.training.lr=0.002"),
        *("largest learning rate", "sampling.unipc", "and of --mode invert:", "score_field", "variational"),
    ):
        assert expected in out
    for name in ("sdes", "samplers", "metrics", "figures", "dequantizations"):
        assert f"{{{name}}}" not in out


def test_help_names_every_sde_sampler_metric_and_picture(capsys):
    from scoresde.app.config import sdes
    from scoresde.app.evaluate import METRICS
    from scoresde.app.visualize import FIGURES
    from sde_configs.build import SAMPLERS

    for mode, flag, names in (
        ("train", "sde", sdes()),
        ("sample", "sampler", ["auto", *SAMPLERS]),
        ("evaluate", "metric", METRICS),
        ("visualize", "what", FIGURES),
    ):
        assert main([f"--mode={mode}", "--help"]) == 0
        line = re.search(rf"^  --{flag} .*$", capsys.readouterr().out, flags=re.M)[0]
        assert set(names) <= set(re.findall(r"\w+", line)), mode


def test_the_commands_of_the_readme(tmp_path):
    small = ["--config.network.channels=4", "--config.network.multipliers=(1,)", "--config.training.num_steps=4"]
    trained = in_a_process(tmp_path, "--mode", "train", "--sde", "vp", *small)
    assert trained.returncode == 0, trained.stderr
    sampled = in_a_process(tmp_path, "--mode", "sample", "--sampler", "pc")
    assert sampled.returncode == 0, sampled.stderr
    assert "using runs/vp, step 4" in sampled.stdout
    picture = tmp_path / re.search(r"picture: (.*)", sampled.stdout)[1]
    assert picture == tmp_path / "runs" / "vp" / "samples" / "pc-seed0.png"
    with Image.open(picture) as image:  # 10 x 10 digits of 8 x 8, gaps of one pixel, six times
        assert image.size == (6 * (10 * 9 + 1), 6 * (10 * 9 + 1))
    assert np.load(picture.with_suffix(".npz"))["labels"].tolist() == list(range(10)) * 10


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    result = in_a_process(tmp_path, "--mode", "sample")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+train first[^\n]+\n", result.stderr)


def test_a_warning_is_one_line_too(monkeypatch, capsys):
    def warn(*_):
        warnings.simplefilter("always")
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(train_module, "train", warn)
    assert main(["--mode=train"]) == 0
    assert capsys.readouterr().err == "warning: something is odd\n"


def test_nobody_reads_any_more(monkeypatch, capfd):
    """As after `| head`: no traceback, and no complaint as the interpreter ends."""

    def stop(*_):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sample_module, "sample", stop)
    before = os.dup(sys.stdout.fileno())
    try:
        assert main(["--mode=sample"]) == 1
    finally:
        os.dup2(before, sys.stdout.fileno())
        os.close(before)
    assert capfd.readouterr().err == ""

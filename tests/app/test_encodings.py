"""Names of any letters, printed in encodings that lack them: escaped, and never a traceback."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from scoresde import plots
from scoresde.app.cli import main
from scoresde.app.flags import MODES, ComputingFlags
from tests.mistakes import assert_mistake
from tests.runs import DIGITS, ROOT

NAMES = ("na\u00efve", "\u732b $x^", "caf\u00e9")  # one that cp1252 lacks, and no formula
RUN = ["--workdir=l\u00e4ufe/\u0142", "--device=cpu"]
COMMANDS = {
    "train": ["--mode=train", *DIGITS[1:], "--config.data.path=bilder-\u00fc", "--workdir=l\u00e4ufe/neu-\u0142"],
    "sample": ["--mode=sample", *RUN, "--labels=\u732b $x^", "--num_samples=3", "--num_steps=5", "--sampler=ddim"],
    "evaluate": ["--mode=evaluate", *RUN, "--input=bilder-\u00fc", "--metric=nll", "--num_steps=6", "--num_samples=3"],
    "invert": ["--mode=invert", *RUN, "--num_steps=6", "--num_samples=3", "--output=l\u00e4ufe/\u015b.png"],
    "visualize": ["--mode=visualize", *RUN, "--what=denoising", "--num_steps=6", "--num_samples=7"],
}
MISTAKES = {
    "workdir": ["--mode=sample", "--workdir=\u0142"],
    "checkpoint": ["--mode=sample", "--checkpoint=\u0142"],
    "labels": ["--mode=sample", *RUN, "--labels=caf\u00e8"],
    "sampler": ["--mode=sample", *RUN, "--sampler=\u0142"],
    "output": ["--mode=sample", *RUN, "--output=bilder-\u00fc/\u0142.jpg"],
    "input": ["--mode=invert", *RUN, "--input=\u0142.npz"],
    "data": ["--mode=train", "--config.data.path=\u0142.npz", "--workdir=x"],
    "config": ["--mode=train", "--config=\u0142.json"],
    "field": ["--mode=train", "--config.data.\u0142=3"],
    "flag": ["--mode=train", "--\u0142=3"],
    "mode": ["--mode=\u0142"],
    "stray": ["--mode=train", "\u0142"],
}


class Terminal(io.TextIOWrapper):
    """A stream that takes itself for a terminal, where progress is a bar."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with images in classes of such names, and a run on them."""
    folder = tmp_path_factory.mktemp("encodings")
    values = np.random.default_rng(0)
    for name in NAMES:
        place = folder / "bilder-\u00fc" / name
        place.mkdir(parents=True)
        for i in range(30):
            Image.fromarray(values.integers(0, 255, (8, 8), dtype=np.uint8)).save(place / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*COMMANDS["train"], RUN[0]]) == 0
    return folder


@pytest.fixture(params=["ascii", "cp1252"])
def run(request, pictures, monkeypatch):
    """Runs a command that prints to an output and a terminal of an encoding; its status, and what it printed."""
    monkeypatch.chdir(pictures)

    def run_in_it(*arguments):
        streams = io.BytesIO(), io.BytesIO()
        shutil.rmtree("l\u00e4ufe/neu-\u0142", ignore_errors=True)
        with monkeypatch.context() as patch:  # pytest puts its own in place before a test is called
            patch.setattr(sys, "stdout", out := io.TextIOWrapper(streams[0], request.param, write_through=True))
            patch.setattr(sys, "stderr", err := Terminal(streams[1], request.param, write_through=True))
            status = main(list(arguments))
        out.detach()
        err.detach()
        return status, "".join(stream.getvalue().decode(request.param) for stream in streams)

    return run_in_it


@pytest.mark.filterwarnings("ignore:Glyph")  # of a class, which the font of pictures lacks
@pytest.mark.parametrize("mode", COMMANDS)
def test_every_command_prints_in_every_encoding(run, mode):
    status, said = run(*COMMANDS[mode])
    assert status == 0
    assert "\\u0142" in said or "\\u015b" in said
    assert ("\\u732b $x^" in said) == (mode == "train")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_escaped_in_one_line(run, mistake):
    status, said = run(*MISTAKES[mistake])
    last = said.splitlines()[-1]
    assert status == 2
    assert last.startswith("error: ")
    assert "\\u0142" in last or mistake == "labels"


def test_help_is_printed_in_every_encoding(run):
    for mode in MODES:
        status, said = run("--help", f"--mode={mode}")
        assert status == 0
        assert ("--config.sampling.pc.snr" in said) == issubclass(MODES[mode].flags, ComputingFlags)
    assert run("--help")[0] == 0


def test_a_name_that_is_no_text_is_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"sch\xf6n")  # Latin-1, in a system of UTF-8
    assert_mistake(capsys, ["--mode=sample", f"--workdir={name}"], r"workdir='sch\\udcf6n': nothing is trained")


def test_names_are_shown_in_pictures_letter_by_letter():
    for name, shown in {"caf\u00e9": "caf\u00e9", "$x^": r"\$x^", os.fsdecode(b"\xe9"): r"\udce9"}.items():
        assert plots.literal(name) == shown


def test_a_system_without_utf_8_trains_and_draws_too(pictures, tmp_path):
    """LC_ALL=C as it was before Python read it as UTF-8."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    made = tmp_path / "l\u00e4ufe"
    for command in (COMMANDS["train"], COMMANDS["visualize"]):
        arguments = [sys.executable, str(ROOT / "main.py"), *command, f"--workdir={made}"]
        done = subprocess.run(arguments, cwd=pictures, env=os.environ | plain, capture_output=True, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (made / "samples" / "denoising.png").exists()

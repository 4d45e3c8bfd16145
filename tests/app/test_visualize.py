"""`--mode visualize`: every picture without a run and of runs, and every mistake in a line."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import VPSDE
from scoresde.app.cli import main, picture
from scoresde.app.visualize import FIGURES
from tests.mistakes import assert_mistake, with_defaults
from tests.runs import DIGITS, ROOT, TINY, TOY, newest

SHORT = {  # what makes a picture quick
    "score_field": [],
    "trajectories": ["--num_steps=6", "--num_samples=3"],
    "density": ["--num_steps=5"],
    "schedule": ["--num_steps=5"],
    "denoising": ["--num_steps=6", "--num_samples=12"],
    "langevin": ["--num_steps=20", "--num_samples=50"],
    "training": [],
    "guidance": ["--num_steps=20", "--num_samples=30"],
}


@pytest.fixture(scope="module", autouse=True)
def more_runs(runs):
    """Runs on points of one and five entries, on colour images and with dropped labels, beside those of all tests."""
    numbers = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        for size in (1, 5):
            np.savez(f"points{size}.npz", x=numbers.normal(size=(300, size)))
            data = [f"--config.data.path=points{size}.npz", f"--workdir=runs/points{size}"]
            assert main([*TOY, *data, "--config.training.num_steps=3"]) == 0
        np.savez("colour.npz", x=numbers.integers(0, 255, (60, 3, 8, 8), dtype=np.uint8))
        colour = ["--config.data.path=colour.npz", "--workdir=runs/colour", "--config.network.channels=8"]
        assert main([*TINY, *colour]) == 0
        dropped = "--config.network.label_dropout=0.1"
        assert main([*DIGITS, dropped, "--workdir=runs/dropped"]) == 0
        assert main([*TOY, dropped, "--workdir=runs/dropped_moons"]) == 0
        assert main([*TOY, dropped, "--config.data.name=blobs", "--workdir=runs/dropped_blobs"]) == 0
        classifier = ["--mode=train_classifier", *DIGITS[1:], "--workdir=runs/classifier"]
        assert main(classifier) == 0
        np.savez("one.npz", x=np.array([[0.5, -0.5], [0.6, -0.4]]))
        Path("runs.png").touch()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Grids, levels and animations of few points."""
    few = {
        "score_field": {"POINTS": 16, "FRAMES": 2, "NOISE_LEVELS": (0.1, 1.0), "NOISE_LEVELS_OF_MANY": (0.5, 2.0)},
        "density": {"POINTS": 12},
        "denoising": {"LEVELS_OF_POINTS": torch.tensor([3.0, 0.1])},
        "trajectories": {"LINES": {"VP": VPSDE()}},
        "guidance": {"NOISE_LEVELS": torch.tensor([0.1, 3.0]), "MOST": 20, "MOST_IMAGES": 20, "CELLS": 101},
    }
    for name, values in few.items():
        for constant, value in values.items():
            monkeypatch.setattr(f"scoresde.app.figures.{name}.{constant}", value)
    for name in ("denoising", "langevin", "training"):
        monkeypatch.setattr(f"scoresde.app.figures.{name}.FRAMES", 2)


def pictured(what, output, *arguments):
    """The picture of a command, which wrote nothing but what it says."""
    assert main(["--mode=visualize", f"--what={what}", "--device=cpu", f"--output={output}", *arguments]) == 0
    with Image.open(output) as image:
        return np.asarray(image.convert("RGB")), getattr(image, "n_frames", 1)


@pytest.mark.parametrize("what", SHORT)
def test_every_picture_is_drawn_without_a_run(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    pixels, _ = pictured(what, "picture.png", *SHORT[what], "--sde=ve", "--config.training.num_steps=4")
    assert pixels.std() > 10  # not blank
    assert "with no run" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_others_are_of_runs_alone():
    """Their tests are in test_visualize_parts."""
    assert FIGURES.keys() - SHORT.keys() == {"latents", "attention"}


OF_RUNS = {
    "vp": ("score_field", "trajectories", "denoising", "training", "schedule"),
    "toy": ("score_field", "density"),
    "points1": ("score_field", "trajectories", "denoising", "density"),
    "points5": ("score_field", "trajectories"),
    "colour": ("denoising", "score_field"),
    "dropped": ("guidance",),
    "dropped_moons": ("guidance",),
    "dropped_blobs": ("guidance",),
}


@pytest.mark.parametrize("run", OF_RUNS)
def test_every_picture_is_drawn_of_a_run(work, tmp_path, capsys, run):
    for what in OF_RUNS[run]:
        pixels, _ = pictured(what, tmp_path / "picture.png", *SHORT[what], f"--workdir=runs/{run}")
        assert pixels.std() > 10, what
        assert "with no run" not in capsys.readouterr().out, what


@pytest.mark.parametrize(
    ("run", "what"),
    [("vp", "denoising"), ("vp", "training"), ("points1", "score_field")]
    + [("points", what) for what, figure in FIGURES.items() if figure.frames],
)
def test_animations_move(work, tmp_path, run, what):
    _, frames = pictured(what, tmp_path / "picture.gif", *SHORT[what], f"--workdir=runs/{run}")
    assert frames == (1 if what == "training" else 2)  # of whose run one checkpoint is kept


GUIDED = {
    "one weight in an interval": ["--workdir=runs/dropped", "--guidance=3", "--guidance_interval=0.3,2"],
    "of a class": ["--workdir=runs/dropped", "--labels=3", "--sampler=ddim"],
    "by a classifier": ["--workdir=runs/vp", "--guide_with=runs/classifier"],
    "away from a worse model": ["--workdir=runs/points", "--guide_with=runs/points"],
    "of known scores, by another rule": ["--sde=vp", "--config.sampling.guidance.eta=0", "--guidance=2", "--labels=1"],
}


@pytest.mark.parametrize("arguments", GUIDED.values(), ids=GUIDED)
def test_guidance_of_every_kind_is_drawn(work, tmp_path, arguments):
    assert pictured("guidance", tmp_path / "a.png", *SHORT["guidance"], *arguments)[0].std() > 10


def test_without_guidance_all_ways_draw_the_class_itself(tmp_path, monkeypatch, capsys):
    """With w = 1 all are about as far from the class as its own draws are; with w = 4 the flow is not."""
    monkeypatch.setattr("scoresde.app.figures.guidance.WEIGHTS", (1.0, 4.0))
    monkeypatch.setattr("scoresde.app.figures.guidance.CELLS", 301)
    pictured("guidance", tmp_path / "a.png", "--sde=vp", "--num_samples=400", "--num_steps=100")
    plain, guided = (
        dict(re.findall(r"([A-Za-z -]+) ([\d.]+)(?:, |$)", line.partition(": ")[2]))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("w = ")
    )
    assert list(plain) == ["reverse SDE", "flow", "predictor-corrector", "particles"]
    assert all(float(distance) < 2 for distance in plain.values())
    assert float(guided["flow"]) > 5 > 2 > float(guided["predictor-corrector"])


def test_a_path_with_weights_is_drawn_too(work, tmp_path):
    for what in ("training", "trajectories"):
        pixels, _ = pictured(what, tmp_path / "a.png", *SHORT[what], "--sde=vdm", "--config.training.num_steps=2")
        assert pixels.std() > 10


def test_vectors_are_drawn_too(work, tmp_path):
    assert main(["--mode=visualize", "--what=schedule", "--sde=vp", f"--output={tmp_path / 'picture.svg'}"]) == 0
    assert "</svg>" in (tmp_path / "picture.svg").read_text()


def test_data_of_ones_own_without_a_run(work, tmp_path):
    for what, data in (
        ("denoising", ["--config.data.name=moons", "--labels=1"]),
        ("trajectories", ["--config.data.path=points.npz"]),
    ):
        assert pictured(what, tmp_path / "a.png", *SHORT[what], *data)[0].std() > 10


@pytest.mark.parametrize("what", ["score_field", "trajectories", "denoising", "training"])
def test_one_point_is_a_picture(work, tmp_path, what):
    arguments = ["--config.data.path=one.npz", "--config.training.num_steps=2", *SHORT[what]]
    arguments += ["--num_samples=1"] if "num_samples" in FIGURES[what].flags else []
    assert pictured(what, tmp_path / "a.png", *arguments)[0].std() > 5


def test_without_any_name_the_newest_run_is_seen(work, capsys):
    assert main(["--mode=visualize", "--what=trajectories", "--device=cpu", *SHORT["trajectories"]]) == 0
    written = re.search(r"picture: (runs/\w+/samples/trajectories\.png)", capsys.readouterr().out)
    assert Path(written.group(1)).exists()


def test_a_script_is_the_mode(work, tmp_path, capsys):
    for what in FIGURES:
        script = runpy.run_path(str(ROOT / "scripts" / f"{what}.py"))
        assert f"python scripts/{what}.py" in script["__doc__"]
        assert picture(what, script["__doc__"], ["--help"]) == 0
        said = capsys.readouterr().out
        assert f"python scripts/{what}.py" in said
        assert set(FIGURES[what].flags) <= set(re.findall(r"--(\w+)", said))
    output = tmp_path / "schedule.png"
    assert picture("schedule", None, ["--sde=vp", f"--output={output}"]) == 0
    assert output.exists()


MISTAKES = {
    "no what": ("--sde=vp", r"what: give --what score_field, --what trajectories"),
    "what": ("--what=score", r"unknown what 'score': did you mean 'score_field'"),
    "what of another mode": ("--mode=sample --what=density", r"what=density: belongs to --mode visualize"),
    "density of images": ("--what=density --workdir=runs/vp", r"makes images of 1x8x8.*--what score_field.*denoising"),
    "density of many": ("--what=density --workdir=runs/points5", r"makes samples of 5.*score_field.*evaluate"),
    "suffix": ("--what=density --output=x.jpg", r"output='x\.jpg': need the name of a \.png or \.svg file"),
    "what does not move": (
        "--what=schedule --output=x.gif",
        r"output='x\.gif': need the name of a \.png or \.svg file",
    ),
    "folder": ("--what=schedule --sde=vp --output=runs.png/x.png", r"output='runs\.png/x\.png': cannot be written"),
    "flag of another picture": ("--what=langevin --labels=3", r"labels=3: does nothing in the picture langevin"),
    "flag of another mode": ("--what=langevin --metric=nll", r"metric=nll: belongs to --mode evaluate"),
    "recipe of a run": ("--what=training --workdir=runs/vp --config=toy", r"config='toy': a checkpoint holds its own"),
    "no class": ("--what=score_field --sde=vp --labels=3", r"labels='3': there are no classes; leave --labels out"),
    "two classes": ("--what=trajectories --workdir=runs/toy --labels=0,1", r"labels='0,1': a picture is of one class"),
    "another class": ("--what=trajectories --workdir=runs/toy --labels=7", r"labels='7': a picture is of one class, 0"),
    "no table": ("--what=schedule --sde=vp --sampler=ode", r"sampler='ode': chooses its steps and is no table"),
    "samples": ("--what=langevin --num_samples=0", r"num_samples=0: need at least 1"),
    "steps": ("--what=trajectories --sde=vp --num_steps=2", r"num_steps=2: need at least 6"),
    "no training": ("--what=training --sde=vp --config.training.num_steps=0", r"config\.training\.num_steps=0: need"),
    "no run": ("--what=training --workdir=runs/gone", r"workdir='runs/gone': nothing is trained there yet"),
    "guidance without dropped labels": ("--what=guidance --workdir=runs/vp", r"train one with network\.label_dropout"),
    "guidance without classes": ("--what=guidance --workdir=runs/points", r"trained without labels; --guide_with"),
    "guidance that is none": ("--what=guidance --sde=vp --guidance=1", r"guidance=1: is no guidance"),
    "guidance of unknown scores": ("--what=guidance --config.data.name=moons", r"data='moons': without a run guidance"),
    "guidance of a line": ("--what=guidance --workdir=runs/points1 --guide_with=runs/points1", r"makes single numbers"),
    "guidance in few steps": ("--what=guidance --sde=vp --num_steps=19", r"num_steps=19: need at least 20"),
    "guidance of no run": ("--what=guidance --sde=vp --guide_with=runs/vp", r"guide_with=runs/vp: needs a trained"),
    "guidance of another picture": ("--what=density --sde=vp --guidance=2", r"guidance=2\.0: needs a trained model"),
    "guidance of the SDE": ("--what=langevin --guidance=2", r"guidance=2\.0: does nothing in the picture langevin"),
    "a fitted sampler": ("--what=denoising --sampler=auto", r"sampler='auto': is fitted to a run by --mode sample"),
    "data": ("--what=score_field --config.data.name=moon", r"unknown data\.name 'moon': did you mean 'moons'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(work, capsys, arguments, message):
    assert_mistake(capsys, with_defaults(arguments, "--mode=visualize", "--device=cpu"), message)


def test_the_course_of_training_needs_a_run(work, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    file.write_bytes(newest("toy").read_bytes())
    arguments = ["--mode=visualize", "--what=training", f"--checkpoint={file}", "--device=cpu"]
    assert_mistake(capsys, arguments, r"model\.safetensors': lies in no run; name one with --workdir")


def test_the_page_of_the_gallery_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "gallery.py"))
    assert script["PAGE"].read_text() == script["page"](), "run make gallery"
    for entry in script["ENTRIES"]:
        assert (script["PICTURES"] / entry.file).stat().st_size <= script["MAX_BYTES"]

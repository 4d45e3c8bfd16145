"""Cascades by the command line: an upsampler is trained, and enlarges what another run draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samplers import DDIM, Stage, cascade
from scoresde import UpsamplingObjective
from scoresde.app import cascade as command
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from tests.mistakes import assert_mistake
from tests.runs import SAMPLE, TINY, Killed, logged_steps

SMALL = [*TINY, "--config.network.channels=8", "--config.training.num_steps=4", "--config.network.label_dropout=0.1"]
BOTH = "--cascade=runs/small,runs/large"
DRAWN = [*SAMPLE, BOTH, "--sampler=ddim"]


@pytest.fixture(scope="module")
def trained_stages(tmp_path_factory):
    """Runs on digits of 4 x 4, and of an upsampler from there to 8 x 8."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*SMALL, "--config.data.image_size=4", "--workdir=runs/small"]) == 0
        assert main([*SMALL, "--config=upsampler", "--workdir=runs/large"]) == 0
        assert main([*SMALL, "--config=upsampler", "--config.objective.factor=4", "--workdir=runs/four"]) == 0
        assert main([*SMALL, "--config.data.image_size=4", "--workdir=runs/plain", *_without_classes()]) == 0
    return folder


def _without_classes():
    return ["--config.data.class_conditional=False", "--config.network.label_dropout=0.0"]


@pytest.fixture
def stages(trained_stages, tmp_path, monkeypatch):
    shutil.copytree(trained_stages, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def numbers(path):
    with np.load(path) as arrays:
        return dict(arrays)


def test_an_upsampler_is_trained_like_any_model(stages):
    run = RunFolder(Path("runs/large"))
    assert logged_steps(run)[-1] == 4
    assert json.loads(run.metrics.read_text().splitlines()[-1])["held_out_loss"] > 0
    with Image.open(run.demo(4)) as picture:
        assert picture.width > 2 * picture.height  # low resolution, drawn and true side by side
    network = run.newest_checkpoint().model().network
    assert (network.image_channels, network.keeps_image) == (1, True)
    assert main([*SMALL, "--config=upsampler", "--workdir=runs/large", "--config.training.num_steps=6"]) == 0
    assert logged_steps(run)[-1] == 6


def test_it_draws_what_the_library_draws(stages, capsys):
    assert main([*DRAWN, "--seed=3", "--output=out.png"]) == 0
    assert "6 samples by ddim, 5 + 5 network evaluations each\npicture: out.png" in capsys.readouterr().out
    found = numbers("out.npz")
    assert found["labels"].tolist() == list(range(6))
    assert found["seeds"].tolist() == [[3, k] for k in range(6)]
    models = [RunFolder(Path(f"runs/{name}")).newest_checkpoint().model() for name in ("small", "large")]
    expected = cascade(
        [Stage(models[0], DDIM(), 5), Stage(models[1], DDIM(), 5, UpsamplingObjective())],
        6,
        cond=torch.arange(6),
        seed=3,
    )
    for name, model, drawn in zip(("stage0", "samples"), models, expected, strict=True):
        np.testing.assert_allclose(found[name], model.codec.decode(drawn.x), rtol=1e-4, atol=1e-3)
    assert main([*SAMPLE, "--workdir=runs/small", "--sampler=ddim", "--seed=3", "--output=small.png"]) == 0
    np.testing.assert_allclose(numbers("small.npz")["samples"], found["stage0"], rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in Path().iterdir()) == ["out.npz", "out.png", "runs", "small.npz", "small.png"]


@pytest.mark.parametrize("sampler", ["pc", "auto", "ancestral"])
def test_samplers_with_pilot_runs_guidance_and_labels(stages, sampler, capsys):
    arguments = [*SAMPLE, BOTH, f"--sampler={sampler}", "--labels=3,1", "--output=out.png"]
    assert main(arguments) == 0
    plain = numbers("out.npz")
    assert plain["labels"].tolist() == [3, 1] * 3
    assert np.isfinite(plain["samples"]).all()
    if sampler == "ancestral":
        assert main([*arguments, "--guidance=3"]) == 0
        assert np.abs(numbers("out.npz")["samples"] - plain["samples"]).max() > 1e-4


def test_the_batch_size_and_the_noise(stages):
    assert main([*DRAWN, "--output=a.png"]) == 0
    assert main([*DRAWN, "--output=b.png", "--config.sampling.batch_size=4"]) == 0
    first = numbers("a.npz")["samples"]
    np.testing.assert_allclose(numbers("b.npz")["samples"], first, rtol=1e-5, atol=1e-4)
    assert main([*DRAWN, "--output=b.png", "--config.sampling.low_noise=0.4"]) == 0
    assert np.abs(numbers("b.npz")["samples"] - first).max() > 1e-3
    np.testing.assert_array_equal(numbers("b.npz")["stage0"], numbers("a.npz")["stage0"])


def test_checkpoints_and_a_base_without_classes(stages):
    large = RunFolder(Path("runs/large")).all_checkpoints()[-1]
    assert main([*SAMPLE, f"--cascade=runs/plain,{large}", "--sampler=ddim", "--output=a.png"]) == 0
    assert numbers("a.npz")["labels"].tolist() == list(range(6))
    assert numbers("a.npz")["samples"].shape == (6, 1, 8, 8)


def test_a_cascade_that_is_killed_goes_on_where_it_stopped(stages, monkeypatch, capsys):
    arguments = [*DRAWN, "--config.sampling.batch_size=2"]
    assert main([*arguments, "--output=whole.png"]) == 0
    draw, calls = command.draw, []

    def killed(trained, plan, shards, world):
        calls.append(plan)
        if len(calls) == 2:  # in the second stage, after a shard
            write = shards.write

            def last(first, samples):
                write(first, samples)
                raise Killed

            monkeypatch.setattr(shards, "write", last)
        draw(trained, plan, shards, world)

    with monkeypatch.context() as patch:
        patch.setattr(command, "draw", killed)
        with pytest.raises(Killed):
            main([*arguments, "--output=out.png"])
    assert len([path for path in Path().iterdir() if path.name.startswith(".out")]) == 2
    capsys.readouterr()
    assert main([*arguments, "--output=out.png"]) == 0
    assert "going on: 1 of 3 shards are there" in capsys.readouterr().out
    assert Path("out.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert Path("out.png").read_bytes() == Path("whole.png").read_bytes()
    assert not [path for path in Path().iterdir() if path.name.startswith(".out")]


MISTAKES = {
    "one": ("--cascade=runs/small", "need runs or checkpoints between commas"),
    "empty": ("--cascade=runs/small,", "need runs or checkpoints between commas"),
    "order": ("--cascade=runs/large,runs/small", "runs/large is an upsampler; begin with a model of small samples"),
    "no upsampler": ("--cascade=runs/small,runs/small", "runs/small is no upsampler; train one, as in"),
    "missing": ("--cascade=runs/small,runs/none", "runs/none"),
    "factor": (
        "--cascade=runs/small,runs/four",
        r"runs/four: makes samples of shape \(1, 8, 8\) of \(1, 2, 2\), and runs/small gives \(1, 4, 4\)",
    ),
    "another run": (f"{BOTH} --workdir=runs/small", "names all models; leave --workdir out"),
    "noise": (f"{BOTH} --config.sampling.low_noise=0.6", r"config\.sampling\.low_noise=0\.6: this upsampler was"),
    "labels": (f"{BOTH} --labels=11", "labels='11'"),
    "steps": (f"{BOTH} --num_steps=0", "num_steps=0"),
    "sampler": (f"{BOTH} --sampler=none", "sampler 'none'"),
    "guidance": ("--cascade=runs/plain,runs/large --guidance=2", "guidance"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line_before_anything_is_drawn(stages, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "draw", None)
    assert_mistake(capsys, ["--mode=sample", "--device=cpu", *arguments.split()], message)


@pytest.mark.parametrize("mode", ["sample", "evaluate", "compare", "edit", "invert", "export"])
def test_an_upsampler_alone_is_refused_in_every_mode(stages, capsys, mode):
    assert_mistake(
        capsys, [f"--mode={mode}", "--device=cpu", "--workdir=runs/large"], "is an upsampler.*--cascade BASE,runs/large"
    )


UNTRAINED = {
    "factor": ("--config.objective.factor=3", r"objective\.factor=3: must divide the sizes"),
    "kernel": ("--config.objective.kernel=box", "kernel 'box'"),
    "network": ("--config.network.name=MLP", "network.name='MLP'"),
}


@pytest.mark.parametrize(("argument", "message"), UNTRAINED.values(), ids=UNTRAINED.keys())
def test_mistakes_of_training_are_one_line(tmp_path, monkeypatch, capsys, argument, message):
    monkeypatch.chdir(tmp_path)
    assert_mistake(capsys, [*TINY, "--config=upsampler", argument], message)
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.safetensors"))

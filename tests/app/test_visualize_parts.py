"""Pictures of runs with parts of their own: an autoencoder, a latent model, and a model of captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import Autoencoder, save_model
from scoresde.app.cli import main
from scoresde.app.figures import latents
from scoresde.networks import LinearAutoencoder
from tests.mistakes import assert_mistake, with_defaults
from tests.runs import TINY, TOY, newest

SMALL = ["--config.network.channels=4", "--config.network.multipliers=(1,2)"]
CAPTIONED = ["--config.data.captions=digits", "--config.data.text_encoder=runs/text"]
ATTENDS = ["--config.network.attention_levels=(0,1)", "--config.network.label_dropout=0.1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of an autoencoder of digits (ae), its latents (latent), captions (text, captioned) and points (toy)."""
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--mode=train_autoencoder", *TINY[1:], *SMALL, "--workdir=runs/ae"]) == 0
        latent = ["--config.data.autoencoder=runs/ae", "--workdir=runs/latent", "--config.network.multipliers=(1,)"]
        assert main([*TINY, "--config.network.channels=8", *latent]) == 0
        text = ["--config.data.captions=digits", "--config.network.width=16", "--config.network.depth=1"]
        assert main(["--mode=train_text_encoder", *TINY[1:], *text, "--workdir=runs/text"]) == 0
        assert main([*TINY, *SMALL, *CAPTIONED, *ATTENDS, "--workdir=runs/captioned"]) == 0
        assert main([*TOY, "--workdir=runs/toy"]) == 0
        save_model(Autoencoder(LinearAutoencoder(5, 2), (5,)), "python.safetensors")
    return folder


@pytest.fixture
def work(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def pictured(what, output, *arguments):
    assert main(["--mode=visualize", f"--what={what}", "--device=cpu", f"--output={output}", *arguments]) == 0
    with Image.open(output) as image:
        return np.asarray(image.convert("RGB"))


def test_an_autoencoder_and_the_latent_model_on_it_have_the_same_picture(work, tmp_path):
    own = pictured("latents", tmp_path / "own.png", "--workdir=runs/ae", "--num_samples=4")
    of_model = pictured("latents", tmp_path / "model.png", "--workdir=runs/latent", "--num_samples=4")
    by_file = pictured("latents", tmp_path / "file.png", f"--checkpoint={newest('ae')}", "--num_samples=4")
    pipeline = pictured("latents", tmp_path / "p.png", "--pipeline=runs/latent/pipeline.json", "--num_samples=4")
    assert own.std() > 10
    for other in (of_model, by_file, pipeline):
        assert np.array_equal(own, other)


def test_the_picture_of_a_run_lies_beside_its_samples(work, capsys):
    assert main(["--mode=visualize", "--what=latents", "--workdir=runs/ae", "--device=cpu"]) == 0
    assert capsys.readouterr().out == "picture: runs/ae/samples/latents.png\n"


def test_latents_are_those_of_held_out_samples(work, monkeypatch, tmp_path):
    seen = []
    draw = latents.plots.autoencoder
    monkeypatch.setattr(latents.plots, "autoencoder", lambda encoded: seen.append(encoded) or draw(encoded))
    pictured("latents", tmp_path / "a.png", "--workdir=runs/ae", "--num_samples=3")
    (encoded,) = seen
    assert encoded.data.shape == encoded.back.shape == (3, 1, 8, 8)
    assert encoded.shown.shape == (3, 4, 4, 4)
    assert len(encoded.law) == 449  # all that are held out
    assert "held-out samples of 1x8x8 as latents of 4x4x4" in encoded.title
    error = (encoded.back - encoded.data).square().flatten(1).mean(1)
    assert encoded.notes == [f"{-10 * torch.log10(value).item():.1f} dB" for value in error]


@pytest.mark.parametrize("more", [[], ["--guidance=2"], ["--sampler=ancestral", "--seed=3"]], ids=lambda m: str(m))
def test_attention_to_the_words_of_a_prompt(work, tmp_path, more):
    arguments = ["--workdir=runs/captioned", "--num_steps=5", "--prompt=a thick seven", *more]
    assert pictured("attention", tmp_path / "a.png", *arguments).std() > 10


def test_a_caption_of_the_data_is_drawn_without_a_prompt(work, tmp_path):
    assert pictured("attention", tmp_path / "a.png", "--workdir=runs/captioned", "--num_steps=5").std() > 10


def test_a_prompt_of_spaces_has_no_words(work, capsys):
    arguments = ["--mode=visualize", "--what=attention", "--workdir=runs/captioned", "--prompt= ", "--device=cpu"]
    assert_mistake(capsys, arguments, r"prompt=' ': has no words to attend to; give a text")


MISTAKES = {
    "latents of a model of data": ("--what=latents --workdir=runs/toy", r"learns the data themselves, not latents"),
    "samples": ("--what=latents --workdir=runs/ae --num_samples=0", r"num_samples=0: need at least 1"),
    "another part": ("--what=latents --workdir=runs/ae --autoencoder=runs/ae", r"autoencoder='runs/ae': .*is an auto"),
    "guidance of latents": ("--what=latents --workdir=runs/ae --guidance=2", r"guidance=2\.0: does nothing in the"),
    "recipe": ("--what=latents --workdir=runs/ae --config=vp", r"config='vp': a checkpoint holds its own"),
    "two places": ("--what=latents --workdir=runs/ae --checkpoint=python.safetensors", r"give one of the two"),
    "no run": ("--what=latents --workdir=runs/gone", r"workdir='runs/gone': no such file or folder"),
    "saved from Python": ("--what=latents --checkpoint=python.safetensors", r"was saved from Python, and its data"),
    "a text encoder": ("--what=latents --workdir=runs/text", r"holds a text encoder and no score model"),
    "setting": ("--what=latents --workdir=runs/ae --config.network.channels=8", r"config\.network\.channels=8: the"),
    "attention without captions": ("--what=attention --workdir=runs/toy", r"trained without captions"),
    "attention of an autoencoder": ("--what=attention --workdir=runs/ae", r"holds an autoencoder and no score model"),
    "empty prompt": ("--what=attention --workdir=runs/captioned --prompt= ", r"prompt='': has no words to attend to"),
    "two prompts": ("--what=attention --workdir=runs/captioned --prompt=a|b", r"prompt='a\|b': a picture is of one"),
    "worse model": (
        "--what=attention --workdir=runs/captioned --guidance=2 --guide_with=runs/captioned",
        r"guide_with: another network attends too",
    ),
    "prompt of another picture": (
        "--what=density --sde=vp --prompt=a",
        r"prompt=a: does nothing in the picture density",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(work, capsys, arguments, message):
    assert_mistake(capsys, with_defaults(arguments, "--mode=visualize", "--device=cpu"), message)

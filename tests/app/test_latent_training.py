"""Training of autoencoders and of models of their latents: what a run leaves, how it goes on, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from scoresde import checkpoint
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.codec import Scaling
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.training import Trainer
from tests.mistakes import assert_mistake
from tests.runs import (
    AUTOENCODER,
    CAPTIONED,
    LATENT,
    LATENT_CLASSIFIER,
    TEXT_ENCODER,
    assert_same_run,
    logged_steps,
    newest,
    records,
)

OFTEN = ["--config.training.num_steps=4", "--config.logging.every=1", "--config.logging.checkpoint_every=2"]


def test_a_run_of_an_autoencoder_leaves_its_files(latents):
    run = RunFolder(latents / "runs/ae")
    (record,) = records(run)
    assert record["step"] == 2
    assert record["held_out_psnr"] > 0
    assert record["held_out_rate"] >= 0
    assert run.demo(2).exists()
    assert checkpoint.models_in(newest("ae")) == {"autoencoder": "autoencoder"}
    config = json.loads((latents / "runs/ae/config.json").read_text())
    assert "sde" not in config
    assert "parametrization" not in config


def test_a_model_of_latents_names_its_autoencoder(latents, capsys):
    """By its digest; the latents of the training data have unit scale, as far as they are trained on."""
    model = checkpoint.load_model(newest("latent"))
    codec = model.codec
    assert isinstance(codec, AutoencoderCodec)
    assert (codec.digest, model.shape) == (checkpoint.load(newest("ae")).digest, (3, 4, 4))
    assert codec.autoencoder.codec == Scaling(8.0, 8.0)
    assert main([*LATENT, "--workdir=runs/latent"]) == 0
    assert "is trained: 2 steps" in capsys.readouterr().out
    assert main([*LATENT, "--workdir=runs/said"]) == 0
    assert "on 1,348 samples (latents of 3x4x4) of 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [AUTOENCODER, LATENT, CAPTIONED, LATENT_CLASSIFIER], ids=["ae", "latent", "captioned", "classifier"]
)
def test_an_interrupted_run_goes_on_as_if_never_stopped(latents, monkeypatch, command, request):
    name = request.node.callspec.id
    asked = [*command, *OFTEN]
    assert main([*asked, f"--workdir=runs/{name}-whole"]) == 0
    take = Trainer.step

    def stopped(trainer):
        take(trainer)
        if trainer.step_number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        assert main([*asked, f"--workdir=runs/{name}-stopped"]) == 130
    assert main([*asked, f"--workdir=runs/{name}-stopped"]) == 0
    assert logged_steps(RunFolder(latents / f"runs/{name}-whole")) == [1, 2, 3, 4]
    assert_same_run(latents / f"runs/{name}-stopped", latents / f"runs/{name}-whole")


def test_a_run_does_not_go_on_with_other_parts(latents, capsys):
    shutil.copytree("runs/captioned", "runs/again")
    more = [*CAPTIONED, "--config.training.num_steps=3", "--workdir=runs/again"]
    other = [word.replace("runs/ae", "runs/other") for word in more]
    assert main(other) == 2
    *_, last = capsys.readouterr().err.splitlines()  # data are encoded first
    assert re.search(r"its run learns the latents of \S+ \(\w+\), and config.data.autoencoder names \w+ now", last)
    assert main([*TEXT_ENCODER, "--seed=2", "--workdir=runs/text2"]) == 0
    other = [word.replace("runs/text", "runs/text2") for word in more]
    assert main(other) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert re.search(r"its run encodes captions by \w+, and config.data.text_encoder names \w+ now", last)


# --- configurations of runs -----------------------------------------------------------------------------------------


def test_a_run_s_own_configuration_trains_another(latents):
    two = ["--device=cpu", "--config.training.num_steps=1"]
    for mode, name, config in (
        ("train_autoencoder", "ae", "ae"),
        ("train_autoencoder", "ae of a latent model's data", "latent"),
        ("train_text_encoder", "text", "text"),
        ("train", "latent", "latent"),
    ):
        asked = [f"--mode={mode}", *two, f"--config=runs/{config}/config.json", f"--workdir=runs/of config {name}"]
        assert main(asked) == 0
    ours, theirs = (json.loads((latents / f"runs/{name}/config.json").read_text()) for name in ("ae", "of config ae"))
    theirs["training"]["num_steps"] = ours["training"]["num_steps"]
    assert ours == theirs


@pytest.mark.parametrize(("name", "mode"), [("ae", "train_autoencoder"), ("text", "train_text_encoder")])
@pytest.mark.parametrize("wanted", ["train", "train_classifier", "visualize"])
def test_a_configuration_of_a_part_is_none_of_a_model(latents, capsys, name, mode, wanted):
    more = ["--what=schedule"] if wanted == "visualize" else ["--workdir=runs/no"]
    given = [f"--mode={wanted}", "--device=cpu", f"--config=runs/{name}/config.json", *more]
    assert_mistake(capsys, given, rf"config='runs/{name}/config.json': is that of --mode {mode}, whose network is")


# --- a beginning from another run -----------------------------------------------------------------------------------


def test_a_run_in_latents_begins_from_one(latents, tmp_path, capsys):
    begun = ["--mode=train", "--device=cpu", "--init_from=runs/latent", "--config.training.num_steps=1"]
    assert main([*begun, "--workdir=runs/begun"]) == 0
    assert "its averaged weights, and its autoencoder" in capsys.readouterr().out
    zero = checkpoint.load(RunFolder(latents / "runs/begun").checkpoint_path(0)).tensors
    old = checkpoint.load(newest("latent")).tensors
    for name, value in old.items():
        if name.startswith("ema.score."):
            assert torch.equal(zero[name], value), name
    shutil.copytree("runs/ae", tmp_path / "moved")
    assert main([*begun, f"--config.data.autoencoder={tmp_path / 'moved'}", "--workdir=runs/begun_of_moved"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.data.autoencoder=runs/other"],
            r"its model learned the latents of \S+ \(\w+\), and config\.data\.autoe",
        ),
        (["--config.data.autoencoder="], r"its model learned the latents of \S+ \(\w+\), and config\S+='' \(none\)"),
    ],
    ids=["other", "none"],
)
def test_a_run_begins_in_the_same_latents_alone(latents, capsys, arguments, message):
    begun = ["--mode=train", "--device=cpu", "--init_from=runs/latent", "--workdir=runs/no"]
    assert_mistake(capsys, [*begun, *arguments], message)


def test_a_run_in_latents_does_not_begin_from_one_of_data(latents, capsys):
    plain = [word for word in LATENT if "autoencoder" not in word]
    assert main([*plain, "--workdir=runs/plain"]) == 0
    begun = ["--mode=train", "--device=cpu", "--init_from=runs/plain", "--workdir=runs/no"]
    given = [*begun, "--config.data.autoencoder=runs/ae"]
    assert_mistake(
        capsys, given, r"its model learned data, and config\.data\.autoencoder='\S+' \(\w+\); its weights need"
    )


# --- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no run": ("--config.data.autoencoder=runs/gone", r"autoencoder='runs/gone': no such file or folder"),
    "score model": (
        "--config.data.autoencoder=runs/latent",
        r"config\.data\.autoencoder='runs/latent': holds a score model and no autoencoder; give a run of",
    ),
    "flip": ("--config.training.flip=True", r"training\.flip=True: the latents of a mirrored image are not those"),
    "dequantize": ("--config.training.dequantize=True", r"training\.dequantize=True: latents are no whole numbers"),
    "side": (
        "--config.data.image_size=7",
        r"its side 7 is not a multiple of 2, by which this autoencoder divides sides",
    ),
    "channels": ("--config.data.name=moons", r"data of shape \(2,\): the autoencoder '\S+' takes 1 channels"),
    "scaling": (
        "--config.data.center=3.0",
        r"config\.data\.center=\(3\.0,\), .*the autoencoder has a scaling of its own",
    ),
    "text encoder": (
        "--config.data.text_encoder=runs/text",
        r"text_encoder='runs/text': the data have no captions; name some by config\.data\.captions",
    ),
    "captions": ("--config.data.captions=digits", r"text_encoder='': the data have captions; name an encoder of texts"),
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("command", [LATENT, LATENT_CLASSIFIER], ids=["train", "train_classifier"])
def test_mistakes_are_named_in_one_line(latents, capsys, command, argument, message):
    scale = ["--config.data.scale=2.0"] if "center" in argument else []
    assert_mistake(capsys, [*command, argument, *scale, "--workdir=runs/no"], message)
    assert not (latents / "runs/no").exists()


def test_data_far_from_those_of_the_autoencoder_are_refused(latents, tmp_path, capsys):
    """Of digits in [0, 16] an autoencoder makes nothing of images in [0, 4000]."""
    np.save(tmp_path / "far.npy", np.random.default_rng(0).uniform(0, 4000, (40, 1, 8, 8)).astype(np.float32))
    given = [*LATENT, f"--config.data.path={tmp_path / 'far.npy'}", "--config.data.class_conditional=False"]
    given = [word for word in given if "label_dropout" not in word]
    message = (
        r"autoencoder='runs/ae': scales its data by Scaling\(center=8\.0, scale=8\.0\), from which these data are far"
    )
    assert_mistake(capsys, [*given, "--workdir=runs/no"], message)


def test_vectors_need_a_linear_autoencoder(latents, capsys):
    toy = ["--mode=train_autoencoder", "--config=toy", "--device=cpu", "--config.training.num_steps=1"]
    message = r"dims=0 of ConvAutoencoder: need 1 for series or 2 for images; vectors take a LinearAutoencoder"
    assert_mistake(capsys, [*toy, "--workdir=runs/no"], message)
    linear = [*toy, "--config.network.name=LinearAutoencoder", "--config.network.latent_channels=2"]
    assert main([*linear, "--workdir=runs/linear"]) == 0
    model = [
        "--mode=train",
        "--config=toy",
        "--device=cpu",
        "--config.training.num_steps=1",
        "--workdir=runs/of_linear",
    ]
    assert main([*model, "--config.data.autoencoder=runs/linear", "--config.network.width=8"]) == 0
    assert checkpoint.load_model(newest("of_linear")).shape == (2,)


def test_averages_of_other_lengths_are_of_models_alone(latents, capsys):
    """The scale of latents is measured for the averaged weights of a checkpoint, and for no others."""
    lengths = ["--config.training.ema_lengths=(0.05,0.1)", "--config.logging.snapshot_every=1"]
    for name, command in {"ae": AUTOENCODER, "latent": LATENT}.items():
        assert main([*command, *lengths, f"--workdir=runs/averaged-{name}"]) == 0
    assert main(["--mode=average", "--workdir=runs/averaged-latent", "--length=0.07"]) == 0
    refused = ["--mode=average", "--workdir=runs/averaged-ae", "--length=0.07"]
    assert_mistake(capsys, refused, r"is of an autoencoder, the scale of whose latents is measured in training alone")


def test_finitely_many_latents_have_no_density(latents, capsys, tmp_path):
    fsq = [word for word in AUTOENCODER if "latent_channels" not in word]
    kind = ["--config.network.kind=fsq", "--config.network.levels=(5,5)", "--config.network.latent_channels=2"]
    refused = [*fsq, kind[0], "--workdir=runs/no"]
    assert_mistake(capsys, refused, r"levels=\(\) of ConvAutoencoder: kind='fsq' needs the number of values of each")
    assert main([*fsq, *kind, "--workdir=runs/fsq"]) == 0
    model = [word.replace("runs/ae", "runs/fsq") for word in LATENT]
    assert main([*model, "--workdir=runs/of_fsq"]) == 0
    asked = ["--mode=evaluate", "--device=cpu", "--workdir=runs/of_fsq", "--num_samples=20", "--num_steps=5"]
    assert_mistake(capsys, [*asked, "--metric=nll"], r"needs latents with a variance, as those of kind='kl'")
    drawn = ["--sampler=ddim", "--features=values", f"--output={tmp_path / 'a.json'}"]
    assert main([*asked, *drawn]) == 0
    assert "densities: the latents of this autoencoder are points" in capsys.readouterr().out

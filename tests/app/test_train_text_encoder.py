"""Runs that train a text encoder: what they leave, that they go on with the same bytes, and how mistakes are named."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from scoresde import Scaling, models_in
from scoresde.app import training_run
from scoresde.app.cli import main
from scoresde.app.config import as_text_encoder, load_config
from scoresde.app.run_folder import RunFolder
from scoresde.checkpoint import load
from scoresde.data import ArrayData
from scoresde.networks import TextTransformer
from scoresde.text import Vocabulary, open_text_encoder
from scoresde.training import Trainer
from tests.mistakes import assert_mistake
from tests.runs import assert_same_run, logged_steps, records
from tests.text import captioned

TRAIN = [
    *("--mode=train_text_encoder", "--device=cpu", "--config.training.batch_size=32", "--config.training.num_steps=20"),
    *("--config.logging.every=10", "--config.logging.checkpoint_every=10", "--config.network.width=16"),
]


def captioned_data(**parts):
    raw, which = captioned.images(400)
    usual = {"values": raw, "cond": {"text": which}, "codec": Scaling(127.5, 127.5), "texts": captioned.TEXTS}
    return ArrayData(**usual | parts)


@pytest.fixture(scope="module", autouse=True)
def data():
    """The data of every run, which can be replaced."""
    held = [captioned_data()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "read_data", lambda config: held[-1].split(config.data.held_out))
        yield held


def train(folder, *arguments):
    return main([*TRAIN, "--workdir", str(folder), *arguments])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted; only read."""
    folder = tmp_path_factory.mktemp("text") / "run"
    assert train(folder) == 0
    return folder


def test_a_run_leaves_its_files(whole, capsys):
    run = RunFolder(whole)
    assert logged_steps(run) == [10, 20]
    for record in records(run):
        assert record["retrieval_group"] == 18
        assert 0 <= record["held_out_caption_at_1"] <= 1
        assert 0 <= record["held_out_sample_at_1"] <= 1
        assert record["held_out_loss"] > 0
    assert [path.name for path in sorted(run.samples.iterdir())] == [
        "training-step-000000005.png",
        "training-step-000000020.png",
    ]
    newest = run.all_checkpoints()[-1]
    assert models_in(newest) == {"text_encoder": "text_encoder"}
    assert train(whole) == 0
    assert "is trained: 20 steps" in capsys.readouterr().out


def test_it_is_a_text_encoder(whole):
    """Of the words of the training samples; with the averaged weights and the checksum of its checkpoint."""
    newest = RunFolder(whole).all_checkpoints()[-1]
    encoder = open_text_encoder(str(newest))
    assert (encoder.context_channels, encoder.max_length, encoder.digest) == (16, 32, load(newest).digest)
    words = load(newest).text_encoder().text.words
    assert words == Vocabulary.of(captioned.TEXTS).words
    assert encoder.encode(captioned.TEXTS)["mask"].sum(1).tolist() == [8] * 18
    assert encoder.notes(["a small circle"]) == [
        "'a small circle': holds what the text encoder does not know: 'circle'"
    ]


def test_words_of_held_out_samples_alone_are_unknown(data, tmp_path):
    """Their embeddings would be noise."""
    texts = (*captioned.TEXTS, "an unseen thing")
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))  # of the split
    which = captioned_data().cond["text"].clone()
    which[order[-100:]] = 18
    data.append(captioned_data(texts=texts, cond={"text": which}))
    try:
        assert train(tmp_path) == 0
    finally:
        data.pop()
    words = load(RunFolder(tmp_path).all_checkpoints()[-1]).text_encoder().text.words
    assert "unseen" not in words
    assert words == Vocabulary.of(captioned.TEXTS).words


@pytest.mark.parametrize("step", [3, 17])
def test_an_interrupted_run_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch, step):
    take = Trainer.step

    def stopped(trainer):
        take(trainer)
        if trainer.step_number == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        assert train(tmp_path) == 130
    assert train(tmp_path) == 0
    assert_same_run(tmp_path, whole)


def test_captions_that_are_cut_are_said(tmp_path, capsys):
    assert train(tmp_path, "--config.network.max_length=5") == 0
    said = "18 of 18 captions have more than 5 words and are cut; --config.network.max_length=MORE keeps them whole"
    assert said in capsys.readouterr().err


def test_without_held_out_samples_the_training_ones_are_drawn(tmp_path):
    assert train(tmp_path, "--config.data.held_out=0") == 0
    assert all("held_out_loss" not in record for record in records(RunFolder(tmp_path)))
    assert RunFolder(tmp_path).demo(20).exists()


@pytest.mark.parametrize("sizes", [(12,), (4, 5, 6)])
def test_samples_that_are_no_images_are_drawn_by_number(data, tmp_path, sizes):
    values = torch.randn(60, 2, *sizes, generator=torch.Generator().manual_seed(0))
    data.append(captioned_data(values=values, cond={"text": torch.arange(60) % 18}, codec=Scaling()))
    try:
        assert train(tmp_path) == 0
    finally:
        data.pop()
    assert RunFolder(tmp_path).demo(20).exists()


def test_the_settings():
    config = as_text_encoder(load_config(None, "vp"))
    assert config.network.to_dict() == {
        "name": "TextTransformer",
        "width": 64,
        "depth": 2,
        "num_heads": 4,
        "max_length": 32,
        "dropout": 0.1,
    }
    assert config.objective.to_dict() == {"name": "ContrastiveObjective"}
    assert "sde" not in config
    assert TextTransformer(("", "", "a"), **{k: v for k, v in config.network.items() if k != "name"}).width == 64


MISTAKES = {
    "width": ("--config.network.width=6", r"width=6 of TextTransformer: need a multiple of num_heads=4"),
    "words": ("--config.network.words=a", r"unknown field --config\.network\.words: it follows from the data"),
    "a field of a score model": ("--config.network.channels=8", r"unknown field --config\.network\.channels"),
    "SDE": ("--config.sde.name=VESDE", r"unknown field --config\.sde\.name"),
    "objective": (
        "--config.objective.name=DenoisingObjective",
        r"objective=DenoisingObjective: trains a NetworkScoreModel, and the model is a ContrastiveTextModel",
    ),
    "network": ("--config.network.name=MLP", r"unknown config\.network\.name 'MLP'.*known are TextTransformer"),
    "seed": ("--seed=-1", r"seed=-1: need 0 <= seed"),
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path, capsys, argument, message):
    assert_mistake(capsys, [*TRAIN, f"--workdir={tmp_path / 'new'}", argument], message)
    assert not (tmp_path / "new").exists()


def test_data_without_captions_are_named(data, tmp_path, capsys):
    data.append(captioned_data(texts=(), cond=None))
    try:
        assert_mistake(capsys, [*TRAIN, f"--workdir={tmp_path / 'new'}"], r"data: no captions; a text encoder learns")
        data.append(captioned_data(values=torch.randn(400, 3)))
        assert_mistake(
            capsys,
            [*TRAIN, f"--workdir={tmp_path / 'new'}"],
            r"data of shape \(3,\): a text encoder is trained with series, images or volumes",
        )
    finally:
        del data[1:]

"""Classifiers in files: they come back as they were, are told from score models, and damage is named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from scoresde import (
    VESDE,
    VPSDE,
    EDMParametrization,
    LearnedVPSDE,
    NetworkScoreModel,
    NoisyClassifier,
    Scaling,
    TimeInput,
    UNetClassifier,
    UsageError,
    checkpoint,
    load_classifier,
    load_model,
    models_in,
    networks,
    save_model,
    save_models,
)
from scoresde.parametrization import Input


def make_classifier(device="cpu", sde=None, **options):
    torch.manual_seed(1)
    network = UNetClassifier(1, 3, channels=4, multipliers=(1, 2))
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()
    options = {"sigma_data": 0.55, "codec": Scaling(100.0, 50.0)} | options
    return NoisyClassifier(network, sde or VPSDE(beta_max=16.0), (1, 5, 4), 3, **options).to(device)


def make_score(device="cpu"):
    return NetworkScoreModel(networks.UNet(1, channels=4), VPSDE(), EDMParametrization(), (1, 5, 4)).to(device)


@pytest.mark.parametrize("input_", [{}, {"input": TimeInput(50.0, -1.0)}], ids=["default", "time"])
@pytest.mark.parametrize("sde", [VESDE(), LearnedVPSDE()], ids=["fixed", "learned"])
def test_a_classifier_comes_back_as_it_was(device, tmp_path, sde, input_):
    classifier, path = make_classifier(device, sde, **input_), tmp_path / "c.safetensors"
    save_model(classifier, path)
    back = load_classifier(path, device)
    x_t, level = torch.randn(3, 1, 5, 4, device=device), sde.level(torch.tensor(0.4)).to(device, torch.float32)
    assert torch.equal(back.logits(x_t, level), classifier.logits(x_t, level).detach())
    assert (back.shape, back.num_classes, back.sigma_data) == ((1, 5, 4), 3, 0.55)
    assert (back.input, back.codec) == (classifier.input, Scaling(100.0, 50.0))
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())


def test_a_file_says_which_models_it_holds(tmp_path):
    save_model(make_classifier(), tmp_path / "c.safetensors")
    save_model(make_score(), tmp_path / "s.safetensors")
    save_models({"score": make_score(), "guide": make_classifier()}, tmp_path / "both.safetensors")
    assert models_in(tmp_path / "c.safetensors") == {"classifier": "classifier"}
    assert models_in(tmp_path / "s.safetensors") == {"score": "score"}
    assert models_in(tmp_path / "both.safetensors") == {"score": "score", "guide": "classifier"}
    assert load_classifier(tmp_path / "both.safetensors", name="guide").num_classes == 3
    assert load_model(tmp_path / "both.safetensors").shape == (1, 5, 4)


def test_one_kind_is_not_taken_for_the_other(tmp_path):
    save_models({"score": make_score(), "guide": make_classifier()}, tmp_path / "both.safetensors")
    with pytest.raises(UsageError, match=r"model='guide' of .*is a classifier, .*load_classifier"):
        load_model(tmp_path / "both.safetensors", name="guide")
    with pytest.raises(UsageError, match=r"model='score' of .*is a score model, .*load_model"):
        load_classifier(tmp_path / "both.safetensors", name="score")
    with pytest.raises(UsageError, match=r"model='classifier': .*holds the models score, guide"):
        load_classifier(tmp_path / "both.safetensors")


class OwnInput(Input):
    def c_in(self, level, sigma_data):
        return torch.ones_like(level.t)

    def c_noise(self, level):
        return level.t


class OwnClassifier(nn.Module):
    """Of a class that is not registered."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(20, 3)

    def forward(self, x, c_noise):
        return self.linear(x.flatten(1))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UsageError, match="OwnInput: cannot be described"):
        save_model(make_classifier(input=OwnInput()), path)
    classifier = make_classifier()
    classifier.register_buffer("extra", torch.ones(2))
    with pytest.raises(UsageError, match="holds extra, which is not a part"):
        save_model(classifier, path)
    assert not path.exists()


def test_a_network_of_the_user_s_own_comes_back_into_one_that_is_given(tmp_path):
    path = tmp_path / "own.safetensors"
    classifier = NoisyClassifier(OwnClassifier(), VPSDE(), (1, 5, 4), 3)
    save_model(classifier, path)
    with pytest.raises(UsageError, match=r"weights of OwnClassifier.*give network=OwnClassifier\(\)"):
        load_classifier(path)
    back = load_classifier(path, network=OwnClassifier())
    x_t, level = torch.randn(2, 1, 5, 4), VPSDE().level(torch.tensor(0.2))
    assert torch.equal(back.logits(x_t, level), classifier.logits(x_t, level).detach())


DAMAGE = {
    "kind": ("critic", r"models\.classifier\.kind='critic': need 'score', 'classifier'"),
    "input": (None, r"models\.classifier\.input=None: this description"),
    "num_classes": ("3", r"models\.classifier\.num_classes='3': this description"),
    "sigma_data": (-1.0, r"sigma_data=-1\.0: must be positive"),
    "network": ({"name": "UNet", "channels_in": 1}, "do not fit the model that it describes"),
    "codec": ({"name": "os.system"}, "unknown models.classifier.codec.name 'os.system'"),
}


@pytest.mark.parametrize(("part", "value", "message"), [(k, *v) for k, v in DAMAGE.items()], ids=DAMAGE)
def test_a_damaged_description_is_named(tmp_path, part, value, message):
    path = tmp_path / "c.safetensors"
    save_model(make_classifier(), path)
    loaded = checkpoint.load(path)
    description = json.loads(json.dumps(loaded.description))
    description["models"]["classifier"][part] = value
    checkpoint.save(path, 0, description, loaded.tensors)
    with pytest.raises(UsageError, match=message):
        load_classifier(path)


def test_a_missing_tensor_is_named(tmp_path):
    path = tmp_path / "c.safetensors"
    save_model(make_classifier(), path)
    loaded = checkpoint.load(path)
    tensors = {k: v for k, v in loaded.tensors.items() if not k.endswith("last.bias")}
    checkpoint.save(path, 0, loaded.description, tensors)
    with pytest.raises(UsageError, match=r"do not fit .*network\.last\.bias"):
        load_classifier(path)

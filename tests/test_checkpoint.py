"""Checkpoints: everything comes back, nothing is executed, and every kind of damage is named."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import scoresde
from scoresde import checkpoint, learned_sde, named_sdes, networks, objective, parametrization
from scoresde.errors import UsageError
from scoresde.score_model import NetworkScoreModel

EXAMPLES = [
    named_sdes.VPSDE(beta_min=0.2, beta_max=15.0, t_min=1e-4, t_max=0.9),
    named_sdes.SubVPSDE(beta_min=0.3, beta_max=12.0, t_min=2e-3, t_max=0.8),
    named_sdes.VESDE(sigma_min=0.02, sigma_max=30.0, t_min=1e-4, t_max=0.7),
    named_sdes.CosineSDE(s=0.01, t_min=1e-3, t_max=0.9),
    named_sdes.EDMSDE(t_min=0.01, t_max=40.0),
    named_sdes.RectifiedFlowSDE(t_min=1e-2, t_max=0.9),
    named_sdes.DiscreteVPSDE(beta_start=2e-4, beta_end=0.03, num_levels=100),
    learned_sde.LearnedVPSDE(gamma_min=-9.0, gamma_max=4.0, num_knots=7, t_min=1e-3, t_max=0.9, t_end=1e-2),
    parametrization.NoiseParametrization(sigma_data=0.7),
    parametrization.DenoisedParametrization(sigma_data=0.7),
    parametrization.ScoreParametrization(sigma_data=0.7),
    parametrization.VelocityParametrization(sigma_data=0.7),
    parametrization.EDMParametrization(sigma_data=0.7),
    objective.UniformTimes(),
    objective.DiscreteTimes(num_levels=17),
    objective.LadderTimes(num_levels=19),
    objective.LogNormalNoiseLevels(mean=-0.4, std=1.5),
    objective.NoiseWeighting(),
    objective.DenoisedWeighting(),
    objective.VelocityWeighting(),
    objective.EDMWeighting(sigma_data=0.3),
    objective.MinSNRWeighting(gamma=3.0),
    objective.LikelihoodWeighting(),
    objective.FlowWeighting(),
    networks.MLP(2, width=8, depth=2, num_classes=3),
    networks.UNet(2, channels=4, multipliers=(1, 3), num_blocks=2, num_classes=3, label_dropout=0.2),
]


DATA = {"center": 0.0, "scale": 1, "low": -1.5, "high": 2.0, "num_classes": 3}


def make_model(device="cpu"):
    network = networks.UNet(1, channels=4, multipliers=(1, 2), num_classes=3)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()  # the last layer starts at zero and would hide the rest
    sde, emitted = named_sdes.VPSDE(beta_max=17.0), parametrization.EDMParametrization(sigma_data=0.6)
    return NetworkScoreModel(network, sde, emitted, (1, 5, 4)).to(device)


def save_model(path, model, other=None):
    """A checkpoint with `model` as the average and `other` (or it too) as the last weights."""
    tensors = {f"ema.{k}": v.clone() for k, v in model.state_dict().items()}
    tensors |= {f"weights.{k}": v for k, v in (other or model).state_dict().items()}
    description = {"model": checkpoint.describe_model(model), "data": DATA, "config": {"seed": 4}}
    checkpoint.save(path, 17, description, tensors)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "step-17.safetensors"
    save_model(file, make_model())
    return file


def test_there_is_an_example_of_every_class():
    assert {type(e).__name__ for e in EXAMPLES} == set(checkpoint.CLASSES)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_class_comes_back_through_json(example):
    text = json.dumps(checkpoint.describe(example))
    back = checkpoint.construct(json.loads(text), type(example).__mro__[1], "thing")
    assert type(back) is type(example)
    if isinstance(example, nn.Module):
        assert back.arguments == example.arguments
        assert {k: v.shape for k, v in back.state_dict().items()} == {
            k: v.shape for k, v in example.state_dict().items()
        }
    else:
        assert back == example


def test_only_known_classes_are_described():
    class MLP(nn.Module):  # the name alone is not enough
        pass

    for thing in (nn.Linear(1, 1), MLP()):
        with pytest.raises(UsageError, match="only built-in classes"):
            checkpoint.describe(thing)


@pytest.mark.parametrize("which", ["ema", "weights"])
def test_a_file_gives_back_the_same_model(device, tmp_path, which):
    model, other = make_model(device), make_model(device)
    save_model(tmp_path / "c.safetensors", model, other)
    loaded = checkpoint.load(tmp_path / "c.safetensors")
    back = loaded.model(which).to(device)
    x, labels = torch.randn(3, 1, 5, 4, device=device), torch.tensor([0, 2, 1], device=device)
    expected = (model if which == "ema" else other).denoise(x, 0.3, labels)
    assert torch.equal(back.denoise(x, 0.3, labels), expected.detach())
    assert (loaded.step, loaded.description["config"]) == (17, {"seed": 4})
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())


def test_no_temporary_file_is_left(path):
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch, fails):
    def fail(*_):
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(path, make_model())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.safetensors.*no such file"):
        checkpoint.load(tmp_path / "gone.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_named(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(path, seed):
    generator = torch.Generator().manual_seed(seed)
    path.write_bytes(bytes(torch.randint(256, (5000,), generator=generator).tolist()))
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"scoresde": "{"}, {"scoresde": "[1]"}, {"scoresde": '{"format": "another"}'}]
)
def test_a_foreign_safetensors_file_is_refused(path, metadata):
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*not a checkpoint of this library"):
        checkpoint.load(path)


@pytest.mark.parametrize("part", ["step", "model", "data", "config"])
def test_a_header_without_a_part_or_with_a_wrong_one_is_refused(path, part):
    loaded = checkpoint.load(path)
    header = {**loaded.description, part: "nonsense"}
    save_file(loaded.tensors, path, metadata={"scoresde": json.dumps(header)})
    with pytest.raises(UsageError, match=rf"step-17\.safetensors.*{part}='nonsense'"):
        checkpoint.load(path)
    del header[part]
    save_file(loaded.tensors, path, metadata={"scoresde": json.dumps(header)})
    if part in ("data", "config"):  # a model alone has none
        assert checkpoint.load(path).step == 17
        return
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in DATA for value in (None, "1", True, float("nan"), ["a"])),
        *(("scale", 0.0), ("high", float("inf")), ("num_classes", -1), ("num_classes", 2.0)),
    ],
)
def test_a_header_without_what_sampling_needs_of_the_data_is_named(path, field, value):
    loaded = checkpoint.load(path)
    for data in ({**DATA, field: value}, {k: v for k, v in DATA.items() if k != field}):
        header = {**loaded.description, "data": data}
        save_file(loaded.tensors, path, metadata={"scoresde": json.dumps(header)})
        with pytest.raises(UsageError, match=rf"step-17\.safetensors.*data\.{field}="):
            checkpoint.load(path)


def test_a_description_cannot_replace_the_header_s_own_fields(path):
    loaded = checkpoint.load(path)
    stale = {**loaded.description, "step": 3, "format": "another", "digest": "0"}
    checkpoint.save(path, 18, stale, loaded.tensors)
    assert checkpoint.load(path).step == 18


def test_weights_that_do_not_exist_are_named(path):
    with pytest.raises(UsageError, match=r"weights='emma': need 'ema'.* or 'weights'"):
        checkpoint.load(path).model("emma")


class OwnNetwork(nn.Module):
    """Of a class of the user's own, with two names for one tensor."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first

    def forward(self, x, c_noise, cond=None):
        return self.again(torch.tanh(self.first(x)))


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_model_is_saved_and_loaded_in_one_line_each(device, tmp_path, kind):
    model, path = make_model(device), kind(tmp_path / "model.safetensors")
    scoresde.save_model(model, path)
    back = scoresde.load_model(path, device)
    x, labels = torch.randn(3, 1, 5, 4, device=device), torch.tensor([0, 2, 1], device=device)
    assert torch.equal(back.denoise(x, 0.3, labels), model.denoise(x, 0.3, labels).detach())
    assert (back.sde, back.parametrization, back.shape) == (model.sde, model.parametrization, model.shape)
    assert not back.training


def test_a_run_s_checkpoint_loads_as_its_averaged_model(path, tmp_path):
    model, other = make_model(), make_model()
    save_model(tmp_path / "c.safetensors", model, other)
    state = scoresde.load_model(tmp_path / "c.safetensors").state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_network_of_the_user_s_own_comes_back_into_one_that_is_given(device, tmp_path):
    emitted = parametrization.NoiseParametrization()
    model = NetworkScoreModel(OwnNetwork(), named_sdes.CosineSDE(), emitted, (4,)).to(device)
    scoresde.save_model(model, tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match=r"network: .*weights of OwnNetwork.*give network=OwnNetwork\(\)"):
        scoresde.load_model(tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match="do not fit"):
        scoresde.load_model(tmp_path / "own.safetensors", network=nn.Linear(4, 4))
    back = scoresde.load_model(tmp_path / "own.safetensors", device, network=OwnNetwork())
    x = torch.randn(3, 4, device=device)
    assert torch.equal(back.denoise(x, 0.3), model.denoise(x, 0.3).detach())
    assert back.sde == model.sde


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone.*its folder does not exist"):
        scoresde.save_model(make_model(), tmp_path / "gone" / "m.safetensors")
    own = scoresde.GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    model = NetworkScoreModel(OwnNetwork(), own, parametrization.NoiseParametrization(), (4,))
    with pytest.raises(UsageError, match="GaussianPathSDE: cannot be described"):
        scoresde.save_model(model, tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("network", {"name": "UNett"}, r"model\.network\.name 'UNett': did you mean 'UNet'"),
        ("network", {"name": "VPSDE"}, r"unknown model\.network\.name 'VPSDE'"),
        ("network", {"name": None}, r"model\.network\.name"),
        ("network", {"chanels": 3}, r"argument of UNet in model\.network: 'chanels': did you mean 'channels'"),
        ("network", {"channels": "many"}, r"model\.network\.channels='many': need a value like 16"),
        ("network", {"channels": 0}, r"channels=0 of UNet: need at least 1"),
        ("network", {"channels": 8}, r"tensors do not fit"),
        ("network", {"num_classes": 0}, r"tensors do not fit"),
        ("sde", {"beta_min": -1.0}, r"beta_min=-1\.0"),
        ("sde", {"name": "os.system"}, r"model\.sde\.name 'os\.system'"),
        ("parametrization", {"sigma_data": None}, r"model\.parametrization"),
    ],
)
def test_a_header_that_describes_no_model_is_named(path, part, change, message):
    loaded = checkpoint.load(path)
    header = loaded.description
    header["model"][part] |= change
    save_file(loaded.tensors, path, metadata={"scoresde": json.dumps(header)})
    with pytest.raises(UsageError, match=message):
        checkpoint.load(path).model()


@pytest.mark.parametrize("part", ["network", "sde", "parametrization", "shape"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_header_with_half_a_model_is_named(path, part, value):
    loaded = checkpoint.load(path)
    loaded.description["model"][part] = value
    with pytest.raises(UsageError, match=rf"model\.{part}={value}"):
        loaded.model()


def test_missing_tensors_are_named(path):
    loaded = checkpoint.load(path)
    del loaded.tensors["ema.network.last.bias"]
    with pytest.raises(UsageError, match=r"do not fit.*network\.last\.bias"):
        loaded.model()


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_is_refused_and_nothing_in_it_runs(path, tmp_path):
    target = tmp_path / "pwned"
    torch.save({"model": Evil(str(target))}, path)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged or not a safetensors file"):
        checkpoint.load(path)
    assert not target.exists()
    torch.load(path.rename(tmp_path / "file.pt"), weights_only=False)["model"].close()
    assert target.exists()  # the trap works


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile itself
def test_a_compiled_network_is_saved_as_what_it_is(tmp_path):
    model = make_model()
    whole = NetworkScoreModel(torch.compile(model.network), model.sde, model.parametrization, model.shape)
    scoresde.save_model(whole, tmp_path / "m.safetensors")
    loaded = scoresde.load_model(tmp_path / "m.safetensors")
    assert type(loaded.network) is networks.UNet
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_only_a_network_s_model_is_saved(tmp_path):
    with pytest.raises(UsageError, match="only a NetworkScoreModel has weights"):
        scoresde.save_model(make_model().under(named_sdes.VESDE()), tmp_path / "m.safetensors")

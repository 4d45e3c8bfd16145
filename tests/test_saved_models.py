"""Models in files: they come back as they were, several in one file, and what could not come back is not saved."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from scoresde import (
    MLP,
    VPSDE,
    Codec,
    DenoisingObjective,
    GaussianPathSDE,
    LearnedVPSDE,
    Network,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    TrainingOptions,
    UsageError,
    checkpoint,
    load_model,
    named_sdes,
    networks,
    parametrization,
    registry,
    save_model,
    save_models,
)
from scoresde.data import ArrayData
from scoresde.parametrization import Input
from scoresde.training import Trainer


def make_model(device="cpu", seed=0):
    torch.manual_seed(seed)
    network = networks.UNet(1, channels=4, multipliers=(1, 2), num_classes=3)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()  # the last layer starts at zero and would hide the rest
    sde, emitted = named_sdes.VPSDE(beta_max=17.0), parametrization.EDMParametrization(sigma_data=0.6)
    return NetworkScoreModel(network, sde, emitted, (1, 5, 4), Scaling(127.5, 127.5)).to(device)


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
    save_model(model, path)
    back = load_model(path, device)
    x, labels = torch.randn(3, 1, 5, 4, device=device), torch.tensor([0, 2, 1], device=device)
    assert torch.equal(back.denoise(x, 0.3, labels), model.denoise(x, 0.3, labels).detach())
    assert (back.sde, back.parametrization, back.shape) == (model.sde, model.parametrization, model.shape)
    assert back.codec == model.codec == Scaling(127.5, 127.5)
    assert not back.training


def test_a_network_of_the_user_s_own_comes_back_into_one_that_is_given(device, tmp_path):
    emitted = parametrization.NoiseParametrization()
    model = NetworkScoreModel(OwnNetwork(), named_sdes.CosineSDE(), emitted, (4,)).to(device)
    save_model(model, tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match=r"network: .*weights of OwnNetwork.*give network=OwnNetwork\(\)"):
        load_model(tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match="do not fit"):
        load_model(tmp_path / "own.safetensors", network=nn.Linear(4, 4))
    back = load_model(tmp_path / "own.safetensors", device, network=OwnNetwork())
    x = torch.randn(3, 4, device=device)
    assert torch.equal(back.denoise(x, 0.3), model.denoise(x, 0.3).detach())
    assert back.sde == model.sde


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile itself
def test_a_compiled_network_is_saved_as_what_it_is(tmp_path):
    model = make_model()
    whole = NetworkScoreModel(torch.compile(model.network), model.sde, model.parametrization, model.shape)
    save_model(whole, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert type(loaded.network) is networks.UNet
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_only_a_network_s_model_is_saved(tmp_path):
    with pytest.raises(UsageError, match="only a NetworkScoreModel has weights"):
        save_model(make_model().under(named_sdes.VESDE()), tmp_path / "m.safetensors")


# several models


def test_several_models_in_one_file(device, tmp_path):
    models = {"score": make_model(device), "teacher": make_model(device, 1), "small": plain_model(device)}
    save_models(models, tmp_path / "m.safetensors")
    x, labels = torch.randn(3, 1, 5, 4, device=device), torch.tensor([0, 2, 1], device=device)
    for name in ("score", "teacher"):
        back = load_model(tmp_path / "m.safetensors", device, name=name)
        assert torch.equal(back.denoise(x, 0.3, labels), models[name].denoise(x, 0.3, labels).detach()), name
    small = load_model(tmp_path / "m.safetensors", device, name="small")
    assert (small.sde, small.shape) == (models["small"].sde, (2,))
    default = load_model(tmp_path / "m.safetensors", device).state_dict()
    assert all(torch.equal(value, default[name]) for name, value in models["score"].state_dict().items())
    assert list(checkpoint.load(tmp_path / "m.safetensors").description["models"]) == list(models)
    with pytest.raises(UsageError, match=r"model='techer': .* holds the models score, teacher, small"):
        load_model(tmp_path / "m.safetensors", name="techer")


def test_a_file_may_hold_no_model_called_score(tmp_path):
    save_models({"teacher": plain_model()}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"model='score': .* holds the models teacher"):
        load_model(tmp_path / "m.safetensors")


# what a model may hold


def plain_model(device="cpu", network=None, sde=None, what=None, codec=None):
    torch.manual_seed(0)
    network = MLP(2, 8, 1) if network is None else network
    emitted = NoiseParametrization(1.0, what or parametrization.UnitVarianceInput())
    return NetworkScoreModel(network, sde or VPSDE(), emitted, (2,), codec or Scaling()).to(device)


@pytest.fixture
def register(monkeypatch):
    """`scoresde.register` for the length of a test."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    return registry.register


class Doubled(Input):
    """Another input's label, doubled."""

    def __init__(self, inner: Input):
        self.inner = inner

    def c_in(self, level, sigma_data):
        return self.inner.c_in(level, sigma_data)

    def c_noise(self, level):
        return 2 * self.inner.c_noise(level)


class Outer(Network):
    """A network made of another."""

    cond_dropout = 0.0

    def __init__(self, inner: nn.Module, factors: tuple[float, ...] = (1.0,)):
        super().__init__()
        self.inner = inner
        self.factors = factors

    def forward(self, x, c_noise, cond=None):
        return self.factors[0] * self.inner(x, c_noise, cond)

    def check_cond(self, cond):
        self.inner.check_cond(cond)

    def null_cond(self, cond, hidden):
        return self.inner.null_cond(cond, hidden)


def test_a_registered_network_comes_back_with_all_that_it_is_made_of(register, device, tmp_path):
    register(Outer)
    register(Doubled)
    inner = MLP(2, 8, 1, num_classes=3, label_dropout=0.1)
    nn.init.normal_(inner.last.weight)
    what = Doubled(Doubled(parametrization.TimeInput(10.0)))
    model = plain_model(device, Outer(inner, (0.5, 2.0)), LearnedVPSDE(num_segments=3), what)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", device)
    assert type(back.network) is Outer
    assert back.network.factors == (0.5, 2.0)
    assert (back.network.inner.num_classes, back.network.inner.cond_dropout) == (3, 0.1)
    assert back.parametrization.input.inner.inner == parametrization.TimeInput(10.0)
    x, labels = torch.randn(3, 2, device=device), torch.tensor([0, 2, 3], device=device)
    assert torch.equal(back.denoise(x, 0.3, labels), model.denoise(x, 0.3, labels).detach())
    registry._CLASSES.pop("Doubled")
    with pytest.raises(UsageError, match=r"unknown models\.score\.parametrization\.input\.name 'Doubled'"):
        load_model(tmp_path / "m.safetensors")


def test_a_network_that_is_registered_later_is_still_given(register, tmp_path):
    model = plain_model(network=Outer(MLP(2, 8, 1)))
    save_model(model, tmp_path / "m.safetensors")
    register(Outer)
    with pytest.raises(UsageError, match=r"weights of Outer, a class that was not registered when it was saved"):
        load_model(tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", network=Outer(MLP(2, 8, 1)))
    assert torch.equal(back.network.inner.first.weight, model.network.inner.first.weight)


def with_extra(model):
    model.autoencoder = nn.Linear(2, 2)
    return model


OWN_SDE = GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
REFUSED = {
    "an SDE of functions": (lambda: plain_model(sde=OWN_SDE), "GaussianPathSDE: cannot be described"),
    "an input": (
        lambda: plain_model(what=Doubled(parametrization.TimeInput())),
        r"NoiseParametrization\.input: holds a Doubled, which a file cannot describe; register the class",
    ),
    "a part that no class has": (
        lambda: with_extra(plain_model()),
        r"model: holds autoencoder\.bias, which is not a part of its network, SDE or codec",
    ),
    "a model of a model": (lambda: plain_model().under(named_sdes.VESDE()), "only a NetworkScoreModel has weights"),
    "a network": (lambda: MLP(2), "model of MLP: only a NetworkScoreModel has weights"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_could_not_be_loaded_is_refused_on_save(make, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        save_model(make(), tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_codec_that_is_not_registered_is_refused_on_save(tmp_path):
    class Own(Codec):
        def encode(self, raw, dtype=torch.float32):
            return raw

        def decode(self, x):
            return x

        def encoded_shape(self, raw_shape):
            return raw_shape

    with pytest.raises(UsageError, match="Own: cannot be described in a file"):
        save_model(plain_model(codec=Own()), tmp_path / "m.safetensors")


def test_mistakes_about_files_and_names_are_named(tmp_path):
    model = plain_model()
    with pytest.raises(UsageError, match=r"gone.*its folder does not exist"):
        save_model(model, tmp_path / "gone" / "m.safetensors")
    with pytest.raises(UsageError, match="models: there are none to save"):
        save_models({}, tmp_path / "m.safetensors")
    for name in ("", "a.b"):  # tensors are named model.part.weight
        with pytest.raises(UsageError, match=f"name='{name}' of a model: need a name without dots"):
            save_models({"a": model, name: model}, tmp_path / "m.safetensors")


def test_no_file_makes_the_program_import(tmp_path):
    """A file that names a class of a module is refused, whatever the name."""
    save_model(plain_model(), tmp_path / "m.safetensors")
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    for name in ("torch.nn.Linear", "os.system", "tests.test_saved_models.Outer", "Outer"):
        for part in ("network", "sde", "parametrization", "codec"):
            description = json.loads(json.dumps(loaded.description))
            description["models"]["score"][part]["name"] = name
            checkpoint.save(tmp_path / "other.safetensors", 0, description, loaded.tensors)
            with pytest.raises(UsageError, match=rf"unknown models\.score\.{part}\.name '{name}'"):
                load_model(tmp_path / "other.safetensors")


# weights with two names


class Tied(nn.Module):
    """A network whose two layers have one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)
        self.last.weight = self.first.weight

    def forward(self, x, c_noise, cond=None):
        return self.last(torch.tanh(self.first(x)))


def test_tied_weights_stay_tied_when_a_model_is_loaded(tmp_path):
    model = plain_model(network=Tied())
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", network=Tied())
    assert back.network.last.weight is back.network.first.weight
    assert torch.equal(back.network.first.weight, model.network.first.weight)


def test_tied_weights_are_trained_averaged_and_resumed(tmp_path):
    data = ArrayData(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)))

    def trainer():
        torch.manual_seed(0)
        options = TrainingOptions(num_steps=6, batch_size=8, lr=0.05, warmup_steps=0)
        return Trainer(plain_model(network=Tied()), data, DenoisingObjective(), options)

    whole, half, rest = trainer(), trainer(), trainer()
    for _ in range(6):
        whole.step()
    for _ in range(2):
        half.step()
    description = {"models": {"score": checkpoint.describe_model(half.model)}}
    checkpoint.save(tmp_path / "half.safetensors", 2, description, half.state())
    rest.load_state(2, checkpoint.load(tmp_path / "half.safetensors").tensors)
    for _ in range(4):
        rest.step()
    expected = whole.state()
    assert torch.equal(expected["ema.score.network.first.weight"], expected["ema.score.network.last.weight"])
    for name, value in rest.state().items():
        assert torch.equal(value, expected[name]), name


# types


class Mixed(nn.Module):
    """A network with parameters and buffers of many types."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.middle = nn.ModuleList(nn.Linear(8, 8, dtype=dtype) for dtype in (torch.bfloat16, torch.float16))
        self.last = nn.Linear(8, 2, dtype=torch.float64)
        self.register_buffer("third", torch.tensor(1 / 3, dtype=torch.float64))
        self.register_buffer("large", torch.tensor(2**40 + 1))
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x, c_noise, cond=None):
        h = self.first(torch.cat([x, c_noise[:, None]], 1).to(self.first.weight.dtype))
        for layer in self.middle:
            h = torch.tanh(layer(h.to(layer.weight.dtype)))
        return (self.last(h.to(self.last.weight.dtype)) * self.third).to(x.dtype)


def assert_equal_in_type(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.float16])
def test_a_model_comes_back_in_its_types(tmp_path, dtype):
    model = plain_model(network=Mixed())
    model = model if dtype is None else model.to(dtype)
    save_model(model, tmp_path / "m.safetensors")
    assert_equal_in_type(load_model(tmp_path / "m.safetensors", network=Mixed()).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.float16])
def test_a_run_goes_on_in_its_types(tmp_path, dtype):
    """Weights, averages and moments, to the last bit."""
    data = ArrayData(torch.randn(40, 2, generator=torch.Generator().manual_seed(2)))

    def trainer():
        torch.manual_seed(1)
        model = plain_model(network=Mixed())
        model = model if dtype is None else model.to(dtype)
        return Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=5, batch_size=8, lr=0.03))

    whole, half, rest = trainer(), trainer(), trainer()
    for _ in range(5):
        whole.step()
    for _ in range(3):
        half.step()
    description = {"models": {"score": checkpoint.describe_model(half.model)}}
    checkpoint.save(tmp_path / "half.safetensors", 3, description, half.state())
    loaded = checkpoint.load(tmp_path / "half.safetensors")
    assert_equal_in_type(loaded.tensors, half.state())
    average = loaded.model(network=Mixed()).state_dict()
    assert_equal_in_type(average, half.average.tensors)
    rest.load_state(3, loaded.tensors)
    for _ in range(2):
        rest.step()
    assert_equal_in_type(rest.state(), whole.state())

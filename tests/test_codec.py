"""Codecs: raw data to the model's units and back, by numbers or by a map of the user's own."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from samplers import DDIM, sample
from scoresde import (
    MLP,
    VPSDE,
    Codec,
    DenoisingObjective,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    TrainingOptions,
    UsageError,
    fit,
    load_model,
    registry,
    save_model,
)
from scoresde.data import ArrayData
from scoresde.training import Trainer

COLUMNS = Scaling((1.0, -2.0, 0.0), (2.0, 0.5, -3.0))


# numbers


def test_scaling_is_written_as_it_is(device):
    raw = torch.tensor([[1.0, 2.0, 3.0], [3.0, -2.0, 0.0]], dtype=torch.float64, device=device)
    expected = torch.tensor([[0.0, 8.0, -1.0], [1.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    assert torch.equal(COLUMNS.encode(raw, torch.float64), expected)
    assert torch.equal(Scaling(1.0, 4.0).encode(raw, torch.float64), (raw - 1) / 4)
    assert torch.equal(Scaling().encode(raw, torch.float64), raw)


@pytest.mark.parametrize("codec", [Scaling(), Scaling(127.5, 127.5), COLUMNS], ids=["none", "numbers", "columns"])
def test_decoding_inverts_encoding(codec, device):
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        raw = 100 * torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device)
        x = codec.encode(raw, dtype)
        assert x.dtype == dtype
        back = codec.decode(x)
        assert back.dtype == dtype
        # a few roundings of numbers of the size of raw and center
        atol = 1000 * torch.finfo(dtype).eps
        torch.testing.assert_close(back, raw.to(dtype), rtol=0, atol=atol)
        change = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device, dtype)
        both = codec.encode(raw + change, dtype) - codec.encode(raw, dtype)
        torch.testing.assert_close(codec.encode_change(change), both, rtol=0, atol=atol)


def test_bytes_are_scaled_as_floats(device):
    raw = torch.tensor([[[0, 255]]], dtype=torch.uint8, device=device)
    x = Scaling(127.5, 127.5).encode(raw)
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == [-1, 1]


def test_scaling_keeps_the_shape_and_checks_the_columns():
    assert Scaling(1.0, 2.0).encoded_shape((3, 8, 8)) == (3, 8, 8)
    assert COLUMNS.encoded_shape((3,)) == (3,)
    for shape in ((2,), (1,), ()):
        with pytest.raises(UsageError, match=r"center of Scaling: has 3 numbers"):
            COLUMNS.encoded_shape(shape)


MISTAKES = {
    "scale 0": (lambda: Scaling(scale=0.0), r"scale=0\.0 of Scaling: must not be 0"),
    "a scale of 0": (lambda: Scaling(scale=(1.0, 0.0)), r"scale=\(1\.0, 0\.0\) of Scaling: must not be 0"),
    "not a number": (lambda: Scaling(center=math.nan), "center=nan of Scaling: need a finite number"),
    "infinite": (lambda: Scaling(scale=(1.0, math.inf)), r"scale=\(1\.0, inf\) of Scaling"),
    "no numbers": (lambda: Scaling(center=()), r"center=\(\) of Scaling"),
    "a word": (lambda: Scaling(center="mean"), "center='mean' of Scaling"),
    "a tensor": (lambda: Scaling(center=torch.zeros(3)), r"center=tensor.* of Scaling"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_scaling_comes_back_from_its_description():
    for codec in (Scaling(), Scaling(127.5, 127.5), COLUMNS):
        described = json.loads(json.dumps(registry.describe(codec)))
        assert registry.construct(described, Codec, "codec") == codec


def test_codec_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Codec()


# a codec of the user's own


@dataclasses.dataclass(frozen=True)
class Sums(Codec):
    """Pairs of neighbours as half their sum and half their difference: images `(1, 2, side)` become `(2 side,)`."""

    side: int = 2

    def encode(self, raw, dtype=torch.float32):
        upper, lower = raw.to(dtype).flatten(1).chunk(2, 1)
        return torch.cat([upper + lower, upper - lower], 1) / 2

    def decode(self, x):
        plus, minus = x.chunk(2, 1)
        return torch.cat([plus + minus, plus - minus], 1).reshape(-1, 1, 2, self.side)

    def encoded_shape(self, raw_shape):
        return (2 * self.side,) if raw_shape == (1, 2, self.side) else raw_shape


class Stretch(nn.Module, Codec):
    """A codec with a weight: vectors, stretched."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.log_scale = nn.Parameter(torch.full((dim,), 0.3))

    def encode(self, raw, dtype=torch.float32):
        return raw.to(dtype) / self.log_scale.exp().to(dtype)

    def decode(self, x):
        return x * self.log_scale.exp().to(x.dtype)

    def encoded_shape(self, raw_shape):
        return raw_shape


@pytest.fixture
def registered(monkeypatch):
    """The two codecs registered, for this test."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    registry.register(Sums)
    registry.register(Stretch)


def images(num=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 1, 2, 2), generator=generator, dtype=torch.uint8)


def test_a_model_is_trained_in_the_codec_s_units_and_its_samples_are_decoded(registered, tmp_path, device):
    torch.manual_seed(0)
    codec = Sums()
    model = NetworkScoreModel(MLP(4, 16, 1), VPSDE(beta_max=40.0), NoiseParametrization(64.0), (4,), codec).to(device)
    trained = fit(model, images(), options=TrainingOptions(num_steps=5, batch_size=32), progress=False)
    save_model(trained, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    assert loaded.codec == codec
    x = sample(loaded, DDIM(), 3, num_steps=4).x
    assert x.shape == (3, 4)
    assert loaded.codec.decode(x).shape == (3, 1, 2, 2)
    raw = images().to(device)
    assert torch.equal(codec.decode(codec.encode(raw)), raw.float())


def test_the_objective_encodes_raw_data(device):
    """Raw data through a codec are what encoded data are without one."""
    torch.manual_seed(0)
    network = MLP(4, 16, 1).to(device)
    nn.init.normal_(network.last.weight)
    with_codec = NetworkScoreModel(network, VPSDE(), NoiseParametrization(64.0), (4,), Sums())
    without = NetworkScoreModel(network, VPSDE(), NoiseParametrization(64.0), (4,))
    losses = []
    for model, raw in ((with_codec, images().to(device)), (without, Sums().encode(images()).to(device))):
        torch.manual_seed(1)
        losses.append(DenoisingObjective()(model, raw))
    assert torch.equal(*losses)


def test_data_of_a_shape_that_the_codec_does_not_take_are_refused():
    model = NetworkScoreModel(MLP(4, 16, 1), VPSDE(), NoiseParametrization(), (4,), Sums())
    data = ArrayData(torch.zeros(8, 1, 3, 2))
    with pytest.raises(
        UsageError, match=r"data of shape \(1, 3, 2\): Sums encodes it as .* and the model takes \(4,\)"
    ):
        Trainer(model, data, DenoisingObjective(), TrainingOptions(batch_size=4))


def test_a_codec_with_weights_is_trained_averaged_saved_and_loaded(registered, tmp_path, device):
    torch.manual_seed(0)
    model = NetworkScoreModel(MLP(2, 8, 1), VPSDE(), NoiseParametrization(), (2,), Stretch(2)).to(device)
    nn.init.normal_(model.network.last.weight)
    data = ArrayData(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    trainer = Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=5, batch_size=32, warmup_steps=0))
    for _ in range(5):
        trainer.step()
    last = model.codec.log_scale.detach().clone()
    assert (last - 0.3).abs().min() > 1e-4
    with trainer.average.applied(model):
        assert not torch.equal(model.codec.log_scale, last)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    assert type(loaded.codec) is Stretch
    assert torch.equal(loaded.codec.log_scale, last)
    assert not loaded.codec.log_scale.requires_grad
    assert loaded.to(dtype=torch.float64).codec.log_scale.dtype == torch.float64

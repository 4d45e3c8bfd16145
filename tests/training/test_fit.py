"""Training in one call: what it takes, what it returns, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from samplers import Heun, sample
from scoresde import (
    MLP,
    VPSDE,
    Autoencoder,
    AutoencoderCodec,
    ConvAutoencoder,
    EDMParametrization,
    NetworkScoreModel,
    Scaling,
    TrainingOptions,
    UNet,
    UsageError,
    fit,
    load_autoencoder,
    load_model,
    save_model,
)
from scoresde.data.arrays import ArrayData
from scoresde.data.latents import encoded
from scoresde.networks import LinearAutoencoder
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer
from tests.exercises.latent_text import TextNetwork
from tests.text import captioned
from tests.training.trainers import advance, assert_same_state, gaussian_data, make_model


def quick_fit(model, data, cond=None, **options):
    options = TrainingOptions(**{"num_steps": 3, "batch_size": 8, **options})
    return fit(model, data, cond, options=options, progress=False)


def test_fit_trains_a_conditional_model_from_a_tensor(device):
    data = gaussian_data(32).values
    labels = (data[:, 0] > 0).long()
    model = make_model(device, num_classes=2)
    before = model.network.conditioning.label.weight.detach().clone()
    trained = quick_fit(model, data, labels)
    assert not trained.training
    assert not any(p.requires_grad for p in trained.parameters())
    assert not torch.equal(trained.network.conditioning.label.weight, before)


def test_fit_returns_the_average_and_leaves_the_last_weights_in_the_model(device):
    model = make_model(device)
    trained = quick_fit(model, gaussian_data(32).values, lr=0.1)
    assert trained is not model
    assert model.training
    assert not torch.equal(trained.network.last.weight, model.network.last.weight)


def test_fit_refuses_data_that_does_not_fit(device):
    model = make_model(device)
    with pytest.raises(UsageError, match="the model takes"):
        quick_fit(model, torch.randn(8, 3))
    with pytest.raises(UsageError, match="1 of 8 samples hold NaN"):
        quick_fit(model, torch.randn(8, 2).index_fill(0, torch.tensor([2]), math.nan))
    with pytest.raises(UsageError, match=r"data of shape \(\): need \(samples, \.\.\.\)"):
        quick_fit(model, 3.0)


@pytest.mark.parametrize("label_type", ["uint8", "int16", "int32", "uint16", list])
def test_fit_takes_arrays_and_lists(device, label_type):
    x_0 = gaussian_data(32).values
    labels = [k % 2 for k in range(32)]
    expected = quick_fit(make_model(device, num_classes=2), x_0, torch.tensor(labels)).state_dict()
    given = labels if label_type is list else np.array(labels, label_type)
    for data in (x_0.double(), x_0.numpy(), x_0.tolist()):
        assert_same_state(quick_fit(make_model(device, num_classes=2), data, given).state_dict(), expected)


def test_fit_trains_in_the_type_of_the_model(device):
    data = gaussian_data(32).values
    exact = quick_fit(make_model(device).double(), data)
    rough = quick_fit(make_model(device), data)
    assert {p.dtype for p in exact.parameters()} == {torch.float64}
    for name, p in exact.named_parameters():
        torch.testing.assert_close(rough.get_parameter(name).double(), p, rtol=1e-3, atol=1e-3)


def test_fit_refuses_whole_numbers_and_what_is_no_array(device):
    with pytest.raises(UsageError, match=r"data of type torch\.uint8: need floats.*127\.5"):
        quick_fit(make_model(device), torch.zeros(8, 2, dtype=torch.uint8))
    with pytest.raises(UsageError, match="data: cannot be converted to a tensor"):
        quick_fit(make_model(device), [[1.0, 2.0], [3.0]])


def test_what_fit_returns_can_be_trained_again(device):
    data = gaussian_data(32).values
    first = quick_fit(make_model(device), data)
    before = {name: p.clone() for name, p in first.named_parameters()}
    second = quick_fit(first, data)
    assert any(not torch.equal(p, before[name]) for name, p in second.named_parameters())


def test_a_model_that_was_loaded_is_trained_on_from_where_it_was(device, tmp_path):
    data = gaussian_data(64)
    trained = quick_fit(make_model(device), data.values, num_steps=150, lr=0.01)
    save_model(trained, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    new, old, trainer = (
        Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=5, batch_size=8, lr=1e-3))
        for model in (make_model(device), trained, loaded)
    )
    assert trainer.held_out_loss(data) == old.held_out_loss(data) < 0.7 * new.held_out_loss(data)
    assert loaded.training
    start = {name: value.clone() for name, value in trainer.average.tensors.items()}
    advance(trainer, 5)
    for name, p in loaded.named_parameters():
        assert not torch.equal(p, start[name])
        assert not torch.equal(trainer.average.tensors[name], start[name])
    again = quick_fit(load_model(tmp_path / "m.safetensors", device), data.values, num_steps=20)
    assert Trainer(again, data, DenoisingObjective(), trainer.options).held_out_loss(data) < 0.7 * new.held_out_loss(
        data
    )


def test_a_part_of_a_loaded_model_can_be_trained_alone(device, tmp_path):
    save_model(make_model(device), tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    loaded.network.last.requires_grad_(True)
    tuned = quick_fit(loaded, gaussian_data(32).values)
    before = load_model(tmp_path / "m.safetensors", device).state_dict()
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"network.last.weight", "network.last.bias"}


def test_labels_that_the_network_does_not_know_are_refused_before_the_first_step(device):
    data = gaussian_data(6).values
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    with pytest.raises(UsageError, match=r"cond: labels from 0 to 3; need labels 0\.\.2"):
        quick_fit(make_model(device, num_classes=3), data, labels)
    quick_fit(make_model(device, num_classes=3, label_dropout=0.1), data, labels)  # there 3 stands for no label
    with pytest.raises(UsageError, match=r"cond: labels from 0 to 4; need labels 0\.\.2.*3 stands for none"):
        quick_fit(make_model(device, num_classes=3, label_dropout=0.1), data, labels + (labels == 3))
    with pytest.raises(UsageError, match="without classes"):
        quick_fit(make_model(device), data, labels)


def text_model(device, cond_dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TextNetwork(2, 9, width=16, cond_dropout=cond_dropout)
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (2,)).to(device)


def text(num_samples):
    """Tokens `(N, 5)`, and a mask that is true for the first of them, one to five."""
    generator = torch.Generator().manual_seed(1)
    length = torch.randint(1, 6, (num_samples, 1), generator=generator)
    mask = torch.arange(5) < length
    return {"tokens": torch.randint(1, 9, (num_samples, 5), generator=generator) * mask, "mask": mask}


@pytest.mark.parametrize("cond_dropout", [0.0, 0.5])
def test_fit_trains_on_conditions_of_several_kinds(device, cond_dropout):
    data = gaussian_data(40).values
    cond = text(40)
    model = text_model(device, cond_dropout)
    before = model.network.embedding.weight.detach().clone()
    trained = quick_fit(model, data, cond, num_steps=6)
    moved = (trained.network.embedding.weight - before).abs().amax(1) > 0
    assert moved[1:].all()
    assert moved[0] == (cond_dropout > 0)  # the token that stands for no text
    as_arrays = {"tokens": cond["tokens"].tolist(), "mask": cond["mask"].numpy()}
    again = quick_fit(text_model(device, cond_dropout), data.numpy(), as_arrays, num_steps=6)
    assert_same_state(again.state_dict(), trained.state_dict())
    mixed = quick_fit(text_model(device, cond_dropout), data, {k: v.roll(1, 0) for k, v in cond.items()}, num_steps=6)
    assert not torch.equal(mixed.network.embedding.weight, trained.network.embedding.weight)


CONDITIONS = {
    "labels": (torch.zeros(5, dtype=torch.long), "cond of length 5: need one entry a sample, 8"),
    "text": ({k: v[:5] for k, v in text(8).items()}, "cond of length 5: need one entry a sample, 8"),
    "one part": (text(8) | {"mask": text(8)["mask"][:7]}, r"cond\['tokens'\] has 8, cond\['mask'\] has 7"),
    "ragged": ({"tokens": [[1, 2], [3]], "mask": None}, r"cond\['tokens'\]: cannot be .* a tensor"),
    "a word": ("cat", "cond: cannot be .* a tensor"),
}


@pytest.mark.parametrize(("cond", "message"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_of_the_wrong_length_are_refused_in_one_line(device, cond, message):
    for model in (make_model(device, num_classes=2), text_model(device)):
        with pytest.raises(UsageError, match=message) as raised:
            quick_fit(model, gaussian_data(8).values, cond)
        assert "\n" not in str(raised.value)


def test_conditions_of_another_kind_are_named(device):
    data = gaussian_data(8).values
    with pytest.raises(UsageError, match=r"cond: a tensor \(int64, \(8,\)\); need {'tokens'"):
        quick_fit(text_model(device), data, torch.zeros(8, dtype=torch.long))
    with pytest.raises(UsageError, match=r"cond: cond\['tokens'\] \(int64, \(8, 5\)\), .*need labels 0\.\.1"):
        quick_fit(make_model(device, num_classes=2), data, text(8))


IMAGES = torch.arange(24 * 64).reshape(24, 1, 8, 8).remainder(251).to(torch.uint8)


def small_autoencoder(device):
    torch.manual_seed(0)
    network = ConvAutoencoder(1, channels=4, multipliers=(1, 2), latent_channels=2)
    return Autoencoder(network, (1, 8, 8), Scaling(127.5, 127.5)).to(device)


def latent_model(codec):
    torch.manual_seed(0)
    network = UNet(channels_in=2, channels=4, multipliers=(1,))
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), codec.encoded_shape((1, 8, 8)), codec)


def test_the_scale_of_the_latents_of_an_autoencoder_is_measured_with_its_averaged_weights(device):
    """Of the linear one, for N(0, I) data: mean of V x + c is c, and its variance |v|^2 + exp(log_variance)."""
    torch.manual_seed(0)
    model = Autoencoder(LinearAutoencoder(3, 2), (3,)).to(device)
    x = torch.randn(2000, 3, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(len(x))  # their mean is 0 and their covariance the identity
    trained = quick_fit(model, x.float(), num_steps=20, lr=0.1)
    encoder = trained.network.encoder
    variance = encoder.weight.square().sum(1) + trained.network.log_variance.exp()
    torch.testing.assert_close(trained.latent_mean, encoder.bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.latent_std.square(), variance, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.network.encoder.weight, encoder.weight)


def test_a_latent_model_is_trained_on_draws_of_latents_that_are_encoded_once(device):
    codec = AutoencoderCodec(quick_fit(small_autoencoder(device), IMAGES))
    model = latent_model(codec).to(device)
    trained = quick_fit(model, IMAGES, num_steps=5)
    assert model.codec is codec
    assert isinstance(trained.codec, AutoencoderCodec)
    data = encoded(ArrayData(IMAGES), codec, torch.device(device))
    by_hand = latent_model(codec).to(device)
    by_hand.codec = data.codec
    advance(Trainer(by_hand, data, DenoisingObjective(), TrainingOptions(num_steps=5, batch_size=8)), 5)
    assert_same_state(model.state_dict(), by_hand.state_dict())
    drawn = sample(trained, Heun(), 2, num_steps=5).x
    assert trained.codec.decode(drawn).shape == (2, 1, 8, 8)


def test_the_codec_is_the_models_own_again_when_training_fails(device):
    codec = AutoencoderCodec(small_autoencoder(device))
    model = latent_model(codec).to(device)
    with pytest.raises(UsageError, match="without classes"):
        quick_fit(model, IMAGES, torch.zeros(24, dtype=torch.long))
    assert model.codec is codec


def test_parts_that_fit_trained_are_saved_and_loaded(device, tmp_path):
    save_model(quick_fit(small_autoencoder(device), IMAGES), tmp_path / "autoencoder.safetensors")
    codec = load_autoencoder(tmp_path / "autoencoder.safetensors", device)
    trained = quick_fit(latent_model(codec).to(device), IMAGES)
    save_model(trained, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors", device)
    assert again.codec == codec
    assert_same_state(again.state_dict(), trained.state_dict())


def test_a_text_encoder_is_trained_to_find_captions(device):
    raw, which = captioned.images(60)
    cond = {name: part[which] for name, part in captioned.table(captioned.model()).items()}
    trained = quick_fit(captioned.model().to(device), raw, cond)
    assert trained.role == "text_encoder"


def test_vectors_have_latents_too(device):
    codec = AutoencoderCodec(Autoencoder(LinearAutoencoder(3, 2), (3,)).to(device))
    model = NetworkScoreModel(MLP(dim=2), VPSDE(), EDMParametrization(1.0), (2,), codec).to(device)
    assert quick_fit(model, torch.randn(16, 3)).codec.decode(torch.zeros(4, 2, device=device)).shape == (4, 3)

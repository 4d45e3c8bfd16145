"""The model around an autoencoder: units, the scale of latents, and its file."""

import pytest
import torch

from scoresde import MLP, BatchNoise, Scaling, UsageError, checkpoint
from scoresde.autoencoding import AutoencodingObjective
from scoresde.data.arrays import ArrayData
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.networks import ConvAutoencoder, LinearAutoencoder, PatchDiscriminator
from scoresde.training import TrainingOptions
from scoresde.training.trainer import Trainer


def model(kind="kl", adversarial=False):
    torch.manual_seed(0)
    network = ConvAutoencoder(1, channels=8, multipliers=(1, 2), kind=kind, latent_channels=3, codebook_size=16)
    discriminator = PatchDiscriminator(1, channels=4, num_levels=1) if adversarial else None
    return Autoencoder(network, (1, 16, 16), Scaling(127.5, 127.5), discriminator)


def images(count=12):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 255


def test_the_scale_of_latents_is_that_of_all_places_of_the_data_in_any_batches():
    autoencoder = model()
    raw = images()
    autoencoder.measure_latents([raw[:5], raw[5:6], raw[6:]])
    with torch.no_grad():
        latents = autoencoder.network.encode(autoencoder.codec.encode(raw))
    z = latents.mean.double()
    variance = z.var((0, 2, 3), correction=0) + latents.log_variance.double().exp().mean((0, 2, 3))
    torch.testing.assert_close(autoencoder.latent_mean.double(), z.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(autoencoder.latent_std.double(), variance.sqrt(), rtol=1e-5, atol=1e-6)
    mean, std = AutoencoderCodec(autoencoder).posterior(raw)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    total = mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))
    torch.testing.assert_close(total, torch.ones(3), rtol=0, atol=1e-5)


def test_latents_that_say_nothing_keep_their_scale():
    torch.manual_seed(0)
    autoencoder = Autoencoder(ConvAutoencoder(1, channels=8, kind="area", latent_channels=1), (1, 16, 16))
    autoencoder.measure_latents([torch.full((3, 1, 16, 16), 9.0)])
    assert (autoencoder.latent_mean.item(), autoencoder.latent_std.item()) == (9, 1)
    with pytest.raises(UsageError, match=r"data: are empty"):
        autoencoder.measure_latents([])


def test_with_another_network_it_shares_everything_else():
    """What a training in several processes computes losses with has the parameters of the model itself."""
    autoencoder = model(adversarial=True)
    other = autoencoder.with_network(autoencoder.network)
    own = dict(autoencoder.named_parameters()) | dict(autoencoder.named_buffers())
    for name, tensor in (*other.named_parameters(), *other.named_buffers()):
        assert tensor is own[name]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_training_goes_on_from_its_state_to_the_bit(kind):
    data = ArrayData(images())
    options = TrainingOptions(batch_size=4, lr=1e-3, dequantize=False)
    objective = AutoencodingObjective(adversarial_weight=0.5, adversarial_start=3)

    def trainer():
        return Trainer(model(kind, adversarial=True), data, objective, options)

    whole, half = trainer(), trainer()
    for _ in range(6):
        whole.step()
    for _ in range(2):
        half.step()
    again = trainer()
    again.load_state(2, {name: value.clone() for name, value in half.state().items()})
    for _ in range(4):
        again.step()
    expected = whole.state()
    found = again.state()
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert all(value.isfinite().all() for value in expected.values())


def test_a_file_brings_it_back_with_its_discriminator(tmp_path):
    autoencoder = model(adversarial=True)
    autoencoder.measure_latents([images()])
    path = tmp_path / "autoencoder.safetensors"
    checkpoint.save_model(autoencoder, path)
    codec = checkpoint.load_autoencoder(path)
    found = codec.autoencoder.state_dict()
    expected = autoencoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    raw = images()
    assert torch.equal(codec.decode(codec.encode(raw)), AutoencoderCodec(autoencoder).decode(codec.encode(raw)))


def test_the_loss_of_held_out_data_has_no_state():
    autoencoder = model("vq")
    data = ArrayData(images())
    trainer = Trainer(autoencoder, data, AutoencodingObjective(), TrainingOptions(batch_size=4, dequantize=False))
    trainer.step()
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    assert trainer.held_out_loss(data) == trainer.held_out_loss(data)
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())


def test_what_is_no_autoencoder_or_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"network of MLP: need an AutoencoderNetwork"):
        Autoencoder(MLP(2), (2,))
    with pytest.raises(UsageError, match=r"side 15 is not a multiple of 2"):
        Autoencoder(ConvAutoencoder(1, channels=4, multipliers=(1, 1)), (1, 16, 15))
    with pytest.raises(UsageError, match=r"takes \(3, \*sizes\) with 0 sizes"):
        Autoencoder(LinearAutoencoder(3, 2), (4,))


def test_draws_are_keyed_by_step_and_place():
    autoencoder = model()
    raw = images(4)
    whole, part = (BatchNoise(0, 1, 4, places) for places in (torch.arange(4), torch.arange(2, 4)))
    together = AutoencodingObjective()(autoencoder, raw, noise=whole)
    torch.testing.assert_close(AutoencodingObjective()(autoencoder, raw[2:], noise=part), together[2:])

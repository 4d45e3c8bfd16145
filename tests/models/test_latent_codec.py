"""An autoencoder as a codec: units of latents, data that are encoded beforehand, and what is refused."""

import pytest
import torch

from scoresde import BatchNoise, Scaling, UsageError
from scoresde.data.arrays import ArrayData
from scoresde.data.latents import encoded
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.latent_codec import AutoencoderCodec, Encoded, without_latents
from scoresde.networks import ConvAutoencoder

RAW = torch.arange(6 * 64).reshape(6, 1, 8, 8).remainder(16).to(torch.uint8)


def codec(kind="kl", **options):
    torch.manual_seed(0)
    network = ConvAutoencoder(1, channels=4, multipliers=(1, 2), latent_channels=3, kind=kind, **options)
    model = Autoencoder(network, (1, 8, 8), Scaling(8.0, 8.0))
    model.measure_latents([RAW])
    return AutoencoderCodec(model)


def test_latents_have_unit_scale_and_come_back():
    ours = codec()
    x = ours.encode(RAW)
    model = ours.autoencoder
    assert x.shape == (6, *ours.encoded_shape((1, 8, 8))) == (6, 3, 4, 4)
    latents = model.network.encode(model.codec.encode(RAW))
    back = x * model.latent_std.view(3, 1, 1) + model.latent_mean.view(3, 1, 1)
    torch.testing.assert_close(back, latents.mean)
    torch.testing.assert_close(ours.decode(x), 8 + 8 * model.network.decode(latents.mean))
    assert ours.encode(RAW, torch.float64).dtype == torch.float64
    assert without_latents(Encoded(ours, 3)) == Scaling(8.0, 8.0)


def test_data_are_encoded_once_and_drawn_in_each_step():
    ours = codec()
    data = encoded(ArrayData(RAW, torch.arange(6)), ours, torch.device("cpu"))
    mean, std = ours.posterior(RAW)
    torch.testing.assert_close(data.values, torch.cat([mean, std], 1))
    assert data.codec.encoded_shape(data.shape) == (3, 4, 4)
    torch.testing.assert_close(data.codec.encode(data.values), mean)
    eps = BatchNoise(0, 1, 6, torch.arange(6)).normal("latents", (3, 4, 4))
    torch.testing.assert_close(data.codec.draw(data.values, eps), mean + std * eps)
    torch.testing.assert_close(data.codec.decode(mean), ours.decode(mean))
    assert data.labels.tolist() == list(range(6))


def test_latents_without_a_variance_are_points():
    ours = codec("fsq", levels=(3, 3, 3))
    data = encoded(ArrayData(RAW), ours, torch.device("cpu"))
    assert data.shape == (3, 4, 4)
    torch.testing.assert_close(data.codec.draw(data.values, torch.ones(6, 3, 4, 4)), data.values)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 8), r"data of shape \(2, 8, 8\).*takes 1 channels"),
        ((1, 8, 7), r"its side 7 is not a multiple of 2"),
        ((1, 8), r"takes \(1, \*sizes\) with 2 sizes"),
    ],
)
def test_data_that_it_does_not_take_are_named(shape, message):
    with pytest.raises(UsageError, match=message):
        codec().encoded_shape(shape)


def test_gradients_go_through_the_decoder_and_not_into_its_weights():
    ours = codec()
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    ours.decode(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in ours.autoencoder.parameters())

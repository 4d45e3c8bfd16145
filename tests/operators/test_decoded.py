"""What is measured of decoded latents: an affine decoder makes everything linear, so posteriors are known."""

import pytest
import torch

from scoresde import VPSDE, Gaussian, Scaling, UsageError
from scoresde.inverse import MMPS
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.exact import ExactScoreModel
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.networks import ConvAutoencoder
from scoresde.networks.autoencoder import LinearAutoencoder
from scoresde.operators import BlockAverage, Decoded, FunctionOperator, Mask, MatrixOperator
from tests.operators.cases import randn

DIM, LATENT, MEASURED = 5, 3, 4
STD = 0.3


def linear_codec():
    """Of vectors, float64: x = W (std z + mean) + b."""
    network = LinearAutoencoder(DIM, LATENT).double()
    with torch.no_grad():
        network.decoder.weight.copy_(randn(DIM, LATENT, seed=1))
        network.decoder.bias.copy_(randn(DIM, seed=2))
    model = Autoencoder(network, (DIM,), Scaling(1.0, 2.0)).double()
    model.latent_mean.copy_(randn(LATENT, seed=3))
    model.latent_std.copy_(randn(LATENT, seed=4).abs() + 0.5)
    return AutoencoderCodec(model)


def affine(codec):
    """The matrix and the shift of what latents are decoded to, in units of the autoencoder's scaling."""
    model = codec.autoencoder
    weight = model.network.decoder.weight
    return weight * model.latent_std, weight @ model.latent_mean + model.network.decoder.bias


def convolutional():
    torch.manual_seed(0)
    return AutoencoderCodec(Autoencoder(ConvAutoencoder(1, channels=4, multipliers=(1, 2)), (1, 8, 8))).decode_scaled


def test_posteriors_of_latents_are_those_of_the_composed_matrix():
    """MMPS, solved to the end, is exact for Gaussians: its mean and covariance are the closed form's at every level.

    The posterior of the latents x_0 given y and x_t = alpha x_0 + sigma eps is Gaussian, with precision
    C^-1 + (alpha / sigma)^2 + B'B / std^2, B = A W; D_y is its mean, and Tweedie's sigma^2 / alpha dD_y / dx_t its
    covariance.
    """
    codec = linear_codec()
    A = randn(MEASURED, DIM, seed=5)
    W, b = affine(codec)
    operator = Decoded(MatrixOperator(A), codec.decode_scaled, (LATENT,))
    factor = randn(LATENT, LATENT, seed=6)
    C = factor @ factor.mT + 0.1 * torch.eye(LATENT, dtype=torch.float64)
    mean = randn(LATENT, seed=7)
    y = randn(1, MEASURED, seed=8)
    sde = VPSDE()
    model = MMPS(ExactScoreModel(Gaussian(mean, C), sde), operator, STD, iterations=None)
    few = MMPS(ExactScoreModel(Gaussian(mean, C), sde), operator, STD, iterations=MEASURED)
    B = A @ W
    for t in (0.05, 0.4, 0.9):
        level = sde.level(torch.tensor(t, dtype=torch.float64))
        x_t = randn(1, LATENT, seed=9)
        snr = (level.alpha / level.sigma) ** 2
        covariance = (C.inverse() + snr * torch.eye(LATENT, dtype=torch.float64) + B.mT @ B / STD**2).inverse()
        pulls = C.inverse() @ mean + level.alpha / level.sigma**2 * x_t[0] + B.mT @ (y[0] - A @ b) / STD**2
        torch.testing.assert_close(model.denoise_at(x_t, level, y)[0], covariance @ pulls, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(few.denoise_at(x_t, level, y)[0], covariance @ pulls, rtol=1e-6, atol=1e-6)
        ways = torch.eye(LATENT, dtype=torch.float64)
        J = (model.denoise_at(x_t + ways, level, y) - model.denoise_at(x_t - ways, level, y)).mT / 2  # D_y is affine
        torch.testing.assert_close(level.sigma**2 / level.alpha * J, covariance, rtol=1e-7, atol=1e-9)


def test_its_derivatives_are_those_of_the_operator_and_the_decoder():
    decode = convolutional()
    operator = Decoded(BlockAverage((1, 8, 8), 2), decode, (4, 4, 4))
    assert operator.measured_shape == (1, 4, 4)
    z, v, w = randn(2, 4, 4, 4).float(), randn(2, 4, 4, 4, seed=1).float(), randn(2, 1, 4, 4, seed=2).float()
    torch.testing.assert_close(operator(z), torch.nn.functional.avg_pool2d(decode(z), 2))
    step = 1e-2
    change = (operator(z + step * v) - operator(z - step * v)) / (2 * step)
    torch.testing.assert_close(operator.jvp(z, v), change, rtol=2e-3, atol=2e-3)  # of order step^2
    torch.testing.assert_close((operator.jvp(z, v) * w).sum(), (v * operator.vjp(z, w)).sum(), rtol=1e-4, atol=1e-4)


def test_latents_of_finitely_many_values_have_a_derivative():
    """That of what the decoder makes of codes: it passes the nearest code as if it were not there."""
    torch.manual_seed(0)
    network = ConvAutoencoder(1, channels=4, multipliers=(1, 2), latent_channels=2, kind="fsq", levels=(5, 5))
    codec = AutoencoderCodec(Autoencoder(network, (1, 8, 8)))
    operator = Decoded(Mask.random((1, 8, 8), 0.5), codec.decode_scaled, (2, 4, 4))
    z = randn(1, 2, 4, 4).float()
    assert (operator.vjp(z, torch.ones_like(operator(z))) != 0).any()


def test_it_says_what_it_is_and_refuses_other_shapes():
    decode = convolutional()
    assert str(Decoded(BlockAverage((1, 8, 8), 2), decode, (4, 4, 4))) == (
        "BlockAverage(1x8x8 to 1x4x4) of decoded latents (4x4x4)"
    )
    with pytest.raises(UsageError, match=r"measures samples of shape \(1, 16, 16\); the decoder gives \(1, 8, 8\)"):
        Decoded(BlockAverage((1, 16, 16), 2), decode, (4, 4, 4))
    with pytest.raises(UsageError, match=r"function: fails on float32 samples"):
        Decoded(FunctionOperator(torch.abs, (1, 8, 8)), decode, (3, 4, 4))

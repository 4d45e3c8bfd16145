"""The bound through a decoder: exact for probabilistic PCA, and a probability of whole numbers."""

import math

import pytest
import torch

from samplers import log_prob
from scoresde import VPSDE, ExactScoreModel, Gaussian, Scaling, UsageError
from scoresde.metrics.latent_bits import draw_latents, log_mass
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.networks import ConvAutoencoder
from tests.test_autoencoding import LATENT, PrincipalComponents, vectors


def principal_components(scaling=Scaling(0.0, 1.0)):  # noqa: B008  frozen
    """The exact model of vectors in the units of a scaling, as a codec of latents, and these vectors in raw units."""
    x = vectors()
    exact = PrincipalComponents(x)
    model = exact.model()
    model.codec = scaling
    raw = scaling.decode(x)
    model.measure_latents([raw])
    return exact, AutoencoderCodec(model, error="l2"), raw


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(2.0, 0.5)], ids=["unit", "scaled"])
def test_with_the_exact_posterior_every_draw_gives_the_log_density(scaling):
    exact, codec, raw = principal_components(scaling)
    # of the data that the model was fitted to, latents have mean 0 and covariance I: p(z) = N(0, I)
    mean, std = codec.autoencoder.latent_mean, codec.autoencoder.latent_std
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-12)
    eps = torch.randn(len(raw), LATENT, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = draw_latents(codec, raw, eps, None)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(drawn.z).sum(1)
    found = drawn.log_likelihood + prior - drawn.log_q
    x = scaling.encode(raw, torch.float64)
    expected = -exact.negative_log_density(x) * x.shape[1] - scaling.log_volume(tuple(x.shape[1:]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_latent_diffusion_model_has_the_exact_log_density():
    exact, codec, raw = principal_components()
    raw = raw[:20]
    generator = torch.Generator().manual_seed(1)
    drawn = draw_latents(codec, raw, torch.randn(20, LATENT, generator=generator, dtype=torch.float64), None)
    normal = Gaussian(torch.zeros(LATENT, dtype=torch.float64), torch.eye(LATENT, dtype=torch.float64))
    density = log_prob(ExactScoreModel(normal, VPSDE()), drawn.z, num_evaluations=64).log_prob
    found = drawn.log_likelihood + density - drawn.log_q
    torch.testing.assert_close(-found / raw.shape[1], exact.negative_log_density(raw), rtol=0, atol=1e-3)


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_intervals_have_the_probability_of_the_law(error):
    edges = torch.linspace(-30, 30, 601, dtype=torch.float64)
    mass = log_mass(edges[:-1], edges[1:], error).exp()
    law = torch.distributions.Laplace(0.0, 1.0) if error == "l1" else torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(mass, law.cdf(edges[1:]) - law.cdf(edges[:-1]), rtol=0, atol=1e-15)
    ends = torch.tensor([-math.inf, 30.0], dtype=torch.float64), torch.tensor([-30.0, math.inf], dtype=torch.float64)
    assert mass.sum() + log_mass(*ends, error).exp().sum() == pytest.approx(1, abs=1e-12)
    far = log_mass(torch.tensor([60.0]).double(), torch.tensor([61.0]).double(), error)
    assert far.isfinite()
    assert far < -50  # not a difference of two numbers near 1


@pytest.mark.parametrize("error", ["l1", "l2"])
def test_whole_numbers_have_probabilities_that_sum_to_one(error):
    torch.manual_seed(0)
    model = Autoencoder(ConvAutoencoder(1, channels=4, multipliers=(1, 2), latent_channels=1), (1, 2, 2), Scaling(2, 2))
    with torch.no_grad():
        model.log_scale.fill_(-1)
    codec = AutoencoderCodec(model.double(), error=error)
    z = torch.randn(1, 1, 1, 1, dtype=torch.float64)
    values = torch.cartesian_prod(*[torch.arange(5)] * 4).reshape(-1, 1, 2, 2)
    # every image of four pixels of five levels, decoded from the same latents
    from scoresde.metrics.latent_bits import _log_likelihood

    total = _log_likelihood(codec, values, z.expand(len(values), -1, -1, -1), (0, 4)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-10)


def test_latents_without_a_variance_have_no_bound():
    codec = AutoencoderCodec(Autoencoder(ConvAutoencoder(1, channels=4, kind="vq"), (1, 8, 8)))
    with pytest.raises(UsageError, match=r"needs latents with a variance"):
        draw_latents(codec, torch.zeros(2, 1, 8, 8), torch.zeros(2, 4, 2, 2), None)

"""Autoencoder networks: every parameter and entry matters, shapes, codes that come back, and what a codebook learns."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

from scoresde import UsageError, registry
from scoresde.networks import AutoencoderNetwork, ConvAutoencoder, Latents, LinearAutoencoder, TinyAutoencoder
from scoresde.networks.quantizers import FiniteQuantizer, VectorQuantizer, perplexity
from tests.networks.test_networks import perturbed

DEEP = {"channels": 8, "multipliers": (1, 2, 3), "middle_attention": True, "latent_convs": True, "norm_groups": 4}
TINY = {"channels": 8, "encoder_blocks": (1, 2), "decoder_blocks": (1, 1), "pooled": True}
NETWORKS = {
    "linear": (LinearAutoencoder, {"channels_in": 5, "latent_channels": 2}, (5,)),
    "kl": (ConvAutoencoder, {"channels_in": 2} | DEEP, (2, 8, 12)),
    "kl of series": (ConvAutoencoder, {"channels_in": 2, "channels": 8, "dims": 1, "num_blocks": 2}, (2, 8)),
    "fsq": (ConvAutoencoder, {"channels_in": 1, "kind": "fsq", "levels": (4, 3), "latent_channels": 2}, (1, 8, 4)),
    "vq": (ConvAutoencoder, {"channels_in": 1, "kind": "vq", "codebook_size": 8} | DEEP, (1, 4, 8)),
    "area": (
        ConvAutoencoder,
        {"channels_in": 2, "kind": "area", "latent_channels": 2, "multipliers": (1, 1)},
        (2, 4, 6),
    ),
    "tiny": (
        TinyAutoencoder,
        {"channels": 8, "encoder_blocks": (1, 2), "decoder_blocks": (1, 1), "pooled": True},
        (3, 4, 6),
    ),
}
every_network = pytest.mark.parametrize(("kind", "arguments", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def samples(shape, device="cpu", batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(device)


def numbers(network, shape, device):
    """Samples, and standard normal numbers of the shape of their latents."""
    return samples(shape, device), samples(network.latent_shape(shape), device, seed=2)


@every_network
def test_the_gradient_reaches_every_parameter(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    latents, again = network(*numbers(network, shape, device))
    loss = again.square().sum() + latents.divergence().sum()
    (loss if latents.commitment is None else loss + latents.commitment.sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9] == []


@every_network
def test_latents_have_the_shape_that_is_said_and_depend_on_every_entry(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    x, eps = numbers(network, shape, device)
    latents, again = network(x.requires_grad_(), eps)
    assert latents.mean.shape == (4, *network.latent_shape(shape))
    assert again.shape == x.shape
    (gradient,) = torch.autograd.grad(again.square().sum(), x)
    assert (gradient != 0).all()


@every_network
def test_samples_do_not_see_one_another(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device).eval()
    x, eps = numbers(network, shape, device)
    together = network(x, eps)[1]
    for i in range(4):
        torch.testing.assert_close(network(x[i : i + 1], eps[i : i + 1])[1][0], together[i], rtol=1e-9, atol=1e-9)


@every_network
def test_its_description_makes_it_again(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device).eval()
    described = json.loads(json.dumps(registry.describe(network)))
    again = registry.construct(described, AutoencoderNetwork, "network").double().to(device).eval()
    again.load_state_dict(network.state_dict())
    x, eps = numbers(network, shape, device)
    assert torch.equal(again(x, eps)[1], network(x, eps)[1])


@every_network
def test_the_weight_of_the_last_layer_is_the_one_behind_which_nothing_comes(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device).eval()
    x, eps = numbers(network, shape, device)
    before = network(x, eps)[1]
    with torch.no_grad():
        network.output_weight().zero_()
    rest = network(x, eps)[1]  # the bias
    with torch.no_grad():
        network.output_weight().add_(1)
    assert torch.equal(rest, rest[:1].expand_as(rest))
    assert (network(x, eps)[1] - before).abs().max() > 1e-6


def test_the_divergence_is_that_of_normal_laws():
    mean, log_variance = samples((3, 2)), samples((3, 2), seed=2)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    exact = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(Latents(mean, log_variance).divergence(), exact)


def test_the_latents_of_area_are_means_of_patches():
    network = ConvAutoencoder(1, channels=4, kind="area", latent_channels=1, multipliers=(1, 1, 1))
    x = samples((1, 8, 4))
    patches = x.view(4, 1, 2, 4, 1, 4).mean((3, 5))
    torch.testing.assert_close(network.encode(x).mean, patches)


# codes


@pytest.mark.parametrize("name", ["fsq", "vq"])
def test_a_code_is_its_own_nearest_to_the_bit(name):
    kind, arguments, shape = NETWORKS[name]
    network = perturbed(kind(**arguments), "cpu").eval()
    z = network.encode(samples(shape)).mean
    assert torch.equal(network.quantizer.nearest(z), z)
    assert torch.equal(network.decode(z), network.decode(z + 1e-6))


def test_every_finite_code_has_its_own_number_and_is_nearest_to_what_is_near():
    levels = (2, 5, 4)
    quantizer = FiniteQuantizer(levels)
    values = [[2 * k / (count - 1) - 1 for k in range(count)] for count in levels]
    z = torch.tensor(list(itertools.product(*values)), dtype=torch.float64)
    h = torch.atanh(z.clamp(-0.999, 0.999))
    found = quantizer(h)
    assert sorted(found.codes.tolist()) == list(range(quantizer.num_codes))
    torch.testing.assert_close(found.values, z, rtol=0, atol=1e-12)
    digits = torch.stack([found.codes % 2, found.codes // 2 % 5, found.codes // 10], 1)
    torch.testing.assert_close(2 * digits.double() / (torch.tensor(levels) - 1) - 1, z, rtol=0, atol=1e-12)
    assert torch.equal(quantizer.nearest(z + 0.24), found.values)  # half of the smallest step is 0.25
    assert torch.equal(quantizer.nearest(z + 9), torch.ones_like(z))


def test_gradients_pass_finite_quantisation_as_they_pass_the_bound():
    h = samples((3, 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(FiniteQuantizer((4, 5, 6))(h).values.sum(), h)
    torch.testing.assert_close(gradient, 1 - h.tanh() ** 2)


def test_commitment_holds_features_to_codes_and_moves_codes_to_features():
    """The weight BETA is on the encoder's term."""
    quantizer = VectorQuantizer(4, 3).double().eval()
    h = samples((3, 5)).requires_grad_()
    found = quantizer(h)
    assert torch.equal(found.values.detach(), quantizer.codebook[found.codes].movedim(-1, 1))
    to_features, to_codes = torch.autograd.grad(found.commitment.sum(), (h, quantizer.codebook))
    error = (h - found.values).detach() / 15
    torch.testing.assert_close(to_features, 2 * quantizer.BETA * error)
    expected = torch.zeros(4, 3, dtype=torch.float64).index_add(0, found.codes.flatten(), -2 * error.mT.reshape(-1, 3))
    torch.testing.assert_close(to_codes, expected)
    (through,) = torch.autograd.grad(quantizer(h).values.sum(), h)
    assert torch.equal(through, torch.ones_like(h))


def trained_codebook(steps, state=None):
    """A codebook of 32 after some steps on points around 16 centres, without random numbers."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(32, 2).double().train()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=5.0)
    if state is not None:
        quantizer.load_state_dict(state)
    centres = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double() + 5
    generator = torch.Generator().manual_seed(3)
    h = (centres.repeat(16, 1) + 0.1 * torch.randn(256, 2, generator=generator, dtype=torch.float64)).mT[None]
    for _ in range(steps):
        optimizer.zero_grad()
        quantizer(h).commitment.sum().backward()
        optimizer.step()
    return quantizer, h


def test_unused_codes_come_into_use():
    """All 32 begin far from the data, so that one or few are nearest to all of them."""
    quantizer, h = trained_codebook(0)
    assert perplexity(quantizer.eval()(h).codes) < 6
    quantizer, h = trained_codebook(400)
    assert perplexity(quantizer.eval()(h).codes) > 24
    torch.testing.assert_close(quantizer.usage.sum().item(), 1.0)


def test_a_codebook_goes_on_from_its_state_to_the_bit():
    whole, _ = trained_codebook(60)
    half, _ = trained_codebook(30)
    again, _ = trained_codebook(30, half.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_only_training_steps_count():
    quantizer = VectorQuantizer(4, 3).double().train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    with torch.no_grad():
        quantizer(samples((3, 5)))
    quantizer.eval()(samples((3, 5)))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize(("codes", "expected"), [([0, 0, 0], 1.0), ([0, 1, 2, 3], 4.0), ([5, 5, 1, 1], 2.0)])
def test_perplexity_is_the_number_of_equally_likely_codes(codes, expected):
    assert math.isclose(perplexity(torch.tensor([codes])), expected)


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gan"}, r"kind='gan' of ConvAutoencoder: need kl, fsq"),
        ({"dims": 3}, r"dims=3 of ConvAutoencoder"),
        ({"channels": 0}, r"channels=0 of ConvAutoencoder"),
        ({"latent_channels": 0}, r"latent_channels=0 of ConvAutoencoder"),
        ({"kind": "fsq", "levels": (4, 4)}, r"latent_channels=4 .*levels=\(4, 4\).* needs 2"),
        ({"kind": "fsq", "levels": (4, 1), "latent_channels": 2}, r"levels=\(4, 1\): .*at least 2"),
        ({"kind": "vq", "codebook_size": 1}, r"codebook_size=1: need at least 2"),
        ({"kind": "area"}, r"latent_channels=4 .*kind='area'.*channels_in=3 needs 3"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        ConvAutoencoder(3, **arguments)


def test_sizes_of_the_others_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match=r"encoder_blocks=\(1, 3\) and decoder_blocks=\(1,\) .*equally many"):
        TinyAutoencoder(encoder_blocks=(1, 3), decoder_blocks=(1,))
    with pytest.raises(UsageError, match=r"latent_channels=0 of TinyAutoencoder"):
        TinyAutoencoder(latent_channels=0)
    with pytest.raises(UsageError, match=r"bound=0.0 of TinyAutoencoder: must be positive"):
        TinyAutoencoder(bound=0.0)
    with pytest.raises(UsageError, match=r"latent_channels=6: need 1 to channels_in=5"):
        LinearAutoencoder(5, 6)


def test_other_samples_are_refused_by_the_side_that_does_not_fit():
    network = ConvAutoencoder(1, channels=4)
    with pytest.raises(UsageError, match=r"side 6 is not a multiple of 4.*crop"):
        network.encode(torch.zeros(1, 1, 8, 6))
    for shape in ((1, 8), (3, 8, 8), ()):
        with pytest.raises(UsageError, match=r"takes \(1, \*sizes\) with 2 sizes"):
            network.latent_shape(shape)
    with pytest.raises(UsageError, match=r"z of shape \(1, 3, 2, 2\): .*decodes \(B, 4"):
        network.decode(torch.zeros(1, 3, 2, 2))


def test_weights_begin_as_a_network_that_passes_something_on():
    """Blocks begin as the identity, but the ends do not begin as zero."""
    network = ConvAutoencoder(1, channels=8)
    assert all(p.abs().max() > 0 for p in (network.output_weight(), network.encode(torch.ones(1, 1, 4, 4)).mean))
    assert isinstance(network, nn.Module)

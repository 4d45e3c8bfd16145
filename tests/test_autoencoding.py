"""The loss of autoencoders: probabilistic PCA where the answer is known, and what each term gives its gradient to."""

import math

import pytest
import torch
from torch import nn

from scoresde import BatchNoise, Scaling, UsageError
from scoresde.autoencoding import AutoencodingObjective, negative_log_likelihood, perceptual_distance
from scoresde.models.autoencoder import RATE, Autoencoder
from scoresde.networks import ConvAutoencoder, LinearAutoencoder, PatchDiscriminator
from scoresde.networks.efficientnet import installed
from scoresde.objective import Batch

DIM, LATENT = 6, 2
BOUND = AutoencodingObjective(kl_weight=1.0, error="l2")
with_weights = pytest.mark.skipif(not installed(), reason="needs scoresde[features]")


def vectors(count=200):
    """Data with two large variances and others that differ, around a mean."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
    mixed = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)).Q
    scales = torch.tensor([3.0, 2.0, 0.7, 0.5, 0.4, 0.3], dtype=torch.float64)
    return (x * scales) @ mixed.T + torch.arange(DIM) / 2


class PrincipalComponents:
    """The best model of data, x ~ N(b, W W' + s^2 I) (Tipping and Bishop 1999, section 3.2)."""

    def __init__(self, x):
        self.mean = x.mean(0)
        variances, directions = torch.linalg.eigh((x - self.mean).T @ (x - self.mean) / len(x))
        self.variance = variances[:-LATENT].mean()
        self.directions = directions[:, -LATENT:]
        self.decoder = self.directions * (variances[-LATENT:] - self.variance).sqrt()

    def negative_log_density(self, x):
        """-log p(x) / DIM of each vector."""
        covariance = self.decoder @ self.decoder.T + self.variance * torch.eye(DIM, dtype=torch.float64)
        return -torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x) / DIM

    def model(self):
        """The autoencoder that is this model and its exact posterior N(M^-1 W' (x - b), s^2 M^-1), M = W' W + s^2 I."""
        precision = self.decoder.T @ self.decoder + self.variance * torch.eye(
            LATENT, dtype=torch.float64
        )  # a diagonal one
        network = LinearAutoencoder(DIM, LATENT).double()
        model = Autoencoder(network, (DIM,)).double()
        with torch.no_grad():
            network.decoder.weight.copy_(self.decoder)
            network.decoder.bias.copy_(self.mean)
            network.encoder.weight.copy_(torch.linalg.solve(precision, self.decoder.T))
            network.encoder.bias.copy_(-network.encoder.weight @ self.mean)
            network.log_variance.copy_((self.variance / precision.diagonal()).log())
            model.raw_scale.copy_(0.5 * self.variance.log() / RATE)
        return model


def expected_loss(model, x):
    """The mean of the loss over eps, exactly: what is quadratic in eps has it over 2 LATENT points."""
    points = math.sqrt(LATENT) * torch.eye(LATENT, dtype=torch.float64)
    losses = [BOUND.at(model, Batch(x), {"eps": point.expand(len(x), -1)}) for point in (*points, *-points)]
    return torch.stack(losses).mean(0)


def test_at_principal_components_the_bound_is_the_log_density():
    x = vectors()
    exact = PrincipalComponents(x)
    model = exact.model()
    losses = expected_loss(model, x)
    torch.testing.assert_close(losses, exact.negative_log_density(x), rtol=0, atol=1e-12)
    losses.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() < 1e-12, name


def test_training_finds_principal_components():
    x = vectors()
    exact = PrincipalComponents(x)
    torch.manual_seed(0)
    model = Autoencoder(LinearAutoencoder(DIM, LATENT).double(), (DIM,)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        expected_loss(model, x).mean().backward()
        optimizer.step()
        schedule.step()
    learned = torch.linalg.qr(model.network.decoder.weight.detach()).Q
    cosines = torch.linalg.svdvals(learned.T @ exact.directions)
    assert (1 - cosines).abs().max() < 1e-3
    assert abs(2 * model.log_scale.item() - exact.variance.log().item()) < 1e-3
    assert abs(expected_loss(model, x).mean().item() - exact.negative_log_density(x).mean().item()) < 1e-3


def test_the_loss_is_the_same_by_draws_as_by_their_law():
    """4000 draws; the deviation of their mean is known from them."""
    x = vectors(1).expand(4000, -1)
    torch.manual_seed(0)
    model = Autoencoder(LinearAutoencoder(DIM, LATENT).double(), (DIM,)).double()
    losses = BOUND(model, x, noise=BatchNoise(1, 0, 4000, torch.arange(4000)))
    assert abs(losses.mean() - expected_loss(model, x[:1])[0]) < 4 * losses.std() / math.sqrt(4000)


@pytest.mark.parametrize(("error", "law"), [("l1", torch.distributions.Laplace), ("l2", torch.distributions.Normal)])
def test_errors_are_log_densities(error, law):
    x, x_hat = vectors(3), vectors(4)[1:]
    log_scale = torch.tensor(0.3, dtype=torch.float64)
    exact = -law(x_hat, log_scale.exp()).log_prob(x).mean(1)
    torch.testing.assert_close(negative_log_likelihood(x, x_hat, log_scale, error), exact)


def images(count=3, channels=1, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, size, size, generator=generator) * 255


def image_model(kind="kl", discriminator=None, channels=1, **arguments):
    torch.manual_seed(0)
    network = ConvAutoencoder(channels, channels=8, multipliers=(1, 1), kind=kind, **arguments)
    return Autoencoder(network, (channels, 32, 32), Scaling(127.5, 127.5), discriminator)


def test_both_terms_are_sums_over_the_number_of_data_entries():
    model = image_model()
    raw = images()
    noise = BatchNoise(0, 0, 3, torch.arange(3))
    free, weighed = (AutoencodingObjective(weight)(model, raw, noise=noise) for weight in (0.0, 2.0))
    latents = model.network.encode(model.codec.encode(raw))
    torch.testing.assert_close(weighed - free, 2 * latents.divergence() / 1024, rtol=1e-4, atol=1e-6)


def test_a_learned_codebook_adds_its_commitment():
    model = image_model("vq")
    raw = images()
    eps = {"eps": torch.zeros(3, *model.latent_shape)}
    with torch.no_grad():
        latents, x_hat = model.network(model.codec.encode(raw), eps["eps"])
        rest = negative_log_likelihood(model.codec.encode(raw), x_hat, model.log_scale, "l1")
        found = AutoencodingObjective().at(model, Batch(raw), eps)
    torch.testing.assert_close(found, rest + latents.commitment)


def test_losses_are_of_each_sample_alone():
    model = image_model()
    raw = images()
    draws = AutoencodingObjective().draw(model, Batch(raw), BatchNoise(0, 0, 3, torch.arange(3)))
    together = AutoencodingObjective().at(model, Batch(raw), draws)
    alone = AutoencodingObjective().at(model, Batch(raw[1:2]), {"eps": draws["eps"][1:2]})
    torch.testing.assert_close(alone[0], together[1], rtol=1e-5, atol=1e-6)


# the adversary


def adversarial(start=0):
    """Double precision, so that norms of gradients can be compared."""
    model = image_model(discriminator=PatchDiscriminator(1, channels=4, num_levels=2)).double()
    objective = AutoencodingObjective(0.0, adversarial_weight=0.5, adversarial_start=start)
    return model, objective


def gradients(model, losses):
    model.zero_grad()
    losses.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_one_backward_pass_gives_each_network_its_own_gradient():
    model, objective = adversarial()
    raw = images().double()
    noise = BatchNoise(0, 0, 3, torch.arange(3))
    found = gradients(model, objective(model, raw, noise=noise))
    plain = gradients(model, AutoencodingObjective(0.0)(model, raw, noise=noise))
    x = model.codec.encode(raw, torch.float64)
    draws = objective.draw(model, Batch(raw), noise)
    x_hat = model.network(x, draws["eps"])[1]
    judge = model.discriminator
    own = gradients(model, 0.5 * (1 - judge(x)).relu().flatten(1).mean(1))
    made = gradients(model, 0.5 * (1 + judge(x_hat.detach())).relu().flatten(1).mean(1))
    asked = gradients(model, -judge(x_hat).flatten(1).mean(1))
    last = "network.decoder.last.weight"
    scale = 0.5 * plain[last].norm() / asked[last].norm()
    for name, gradient in found.items():
        if name.startswith("discriminator"):
            torch.testing.assert_close(gradient, own[name] + made[name])
        elif name.startswith("network"):
            torch.testing.assert_close(gradient, plain[name] + scale * asked[name])
        else:
            torch.testing.assert_close(gradient, plain[name])


def test_the_adversary_is_asked_from_its_step_on_and_not_of_held_out_data():
    model, objective = adversarial(start=5)
    raw = images().double()

    def loss(step, objective):
        return objective(model, raw, noise=BatchNoise(0, step, 3, torch.arange(3)))

    plain = AutoencodingObjective(0.0)
    assert torch.equal(loss(4, objective), loss(4, plain))
    assert not torch.equal(loss(5, objective), loss(5, plain))
    with torch.no_grad():
        assert torch.equal(loss(5, objective), loss(5, plain))


def test_an_adversary_learns_to_tell_and_the_autoencoder_to_be_taken_for_data():
    """The discriminator alone, by Adam, on what does not change."""
    model, objective = adversarial()
    raw = images().double()
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=1e-3)
    x = model.codec.encode(raw, torch.float64)
    for step in range(60):
        optimizer.zero_grad()
        objective(model, raw, noise=BatchNoise(0, step, 3, torch.arange(3))).sum().backward()
        optimizer.step()
    x_hat = model.network(x, torch.zeros(3, *model.latent_shape, dtype=torch.float64))[1]
    assert model.discriminator(x).mean() > model.discriminator(x_hat).mean() + 1


# the perceptual term


@with_weights
def test_the_perceptual_distance_is_that_of_images_and_grows_with_their_difference():
    x = images(2, 3, 48) / 127.5 - 1
    assert torch.equal(perceptual_distance(x, x), torch.zeros(2))
    near, far = (perceptual_distance(x, x + size * torch.ones_like(x).tril()) for size in (0.05, 0.5))
    assert (near > 0).all()
    assert (far > near).all()
    torch.testing.assert_close(perceptual_distance(x, x + 0.1), perceptual_distance(x + 0.1, x))


@with_weights
def test_the_perceptual_term_reaches_the_encoder_and_is_weighed():
    model = image_model(channels=3)
    raw = images(channels=3)
    noise = BatchNoise(0, 0, 3, torch.arange(3))
    plain, weighed = (AutoencodingObjective(0.0, perceptual_weight=weight) for weight in (0.0, 2.0))
    difference = weighed(model, raw, noise=noise) - plain(model, raw, noise=noise)
    x = model.codec.encode(raw)
    x_hat = model.network(x, plain.draw(model, Batch(raw), noise)["eps"])[1]
    torch.testing.assert_close(difference, 2 * perceptual_distance(x, x_hat), rtol=1e-4, atol=1e-5)
    assert gradients(model, difference)["network.encoder.first.weight"].abs().max() > 0


# mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"error": "l3"}, r"error='l3' of AutoencodingObjective: need 'l1' or 'l2'"),
        ({"kl_weight": -1.0}, r"kl_weight=-1.0 of AutoencodingObjective: .*not negative"),
        ({"adversarial_weight": math.inf}, r"adversarial_weight=inf"),
    ],
)
def test_arguments_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        AutoencodingObjective(**arguments)


def test_an_adversarial_term_needs_a_discriminator_that_fits():
    objective = AutoencodingObjective(adversarial_weight=0.5)
    with pytest.raises(UsageError, match=r"adversarial_weight=0.5: the model has no discriminator"):
        objective(image_model(), images())
    with pytest.raises(UsageError, match=r"num_levels=4 of PatchDiscriminator: needs sides of 48"):
        objective(image_model(discriminator=PatchDiscriminator(1, num_levels=4)), images())


def test_a_perceptual_term_needs_images():
    model = Autoencoder(LinearAutoencoder(6, 2), (6,))
    with pytest.raises(UsageError, match=r"perceptual_weight: .*shape \(6,\); set it to 0"):
        AutoencodingObjective(perceptual_weight=1.0)(model, vectors(4).float())
    assert isinstance(model, nn.Module)

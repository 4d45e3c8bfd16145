r"""Training of autoencoders: how well data come back, and what latents cost.

With q(z | x) the encoder's law, p(x | z) a law around the decoder's output x_hat(z) whose scale exp(s) is learned, and
p(z) = N(0, I), a sample of D entries has the loss

    ( -log p(x | z)  +  kl_weight KL(q(z | x) || p(z)) ) / D,      z drawn from q(z | x).

Both terms are sums over all entries of x and of z, so with kl_weight 1 its mean is a bound on -log p(x) / D in nats
per dimension of the data in the model's units (Kingma and Welling 2014). Rombach et al. (2022) divide the same sums by
the number of samples, so their weight 1e-6 is 1e-6 here. With errors a = |x - x_hat| the first term is

    "l1"    sum of  a exp(-s) + s + log 2                    Laplace
    "l2"    sum of  a^2 exp(-2 s) / 2 + s + log(2 pi) / 2    Gaussian

Two terms make images look better at a cost in error. A perceptual one compares features of a network that was trained
to classify photos. An adversarial one asks a discriminator, which learns in the same step and by the same optimiser:
its own loss sees reconstructions without their gradient, and the autoencoder's sees the discriminator with constant
weights, so that one backward pass gives each its gradient.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import UsageError, require
from scoresde.models.autoencoder import Autoencoder
from scoresde.networks.efficientnet import EfficientNetLite0, installed_file, load
from scoresde.noise import BatchNoise
from scoresde.objective import Averaged, Batch, Objective

LARGEST = 1e4  # ratio of gradients (Esser et al. 2021, equation 7)
STAGES = 5  # of EfficientNet, whose features are compared: down to a sixteenth of the size


@final
@dataclass(frozen=True)
class AutoencodingObjective(Objective[Autoencoder]):
    """The loss of an autoencoder, in nats per dimension.

    Where gradients are off, as for held-out data, it is without the perceptual and the adversarial term.

    Attributes:
        kl_weight: of the divergence of latents; 1 for the bound, much less for latents that keep what a generative
            model shall learn. Networks without a variance have no divergence.
        error: "l1" or "l2".
        perceptual_weight: of the perceptual term, a number a sample (`perceptual_distance`); 0 for none.
        adversarial_weight: of the adversarial term, after it is scaled so that its gradient at the decoder's last layer
            has the norm of that of the other terms (Esser et al. 2021); 0 for none.
        adversarial_start: the step at which the discriminator begins to learn and to be asked.
    """

    kl_weight: float = 1e-6
    error: str = "l1"
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0

    trains = Autoencoder

    def __post_init__(self) -> None:
        require(self.error in ("l1", "l2"), f"error={self.error!r} of AutoencodingObjective: need 'l1' or 'l2'")
        for name in ("kl_weight", "perceptual_weight", "adversarial_weight", "adversarial_start"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf, f"{name}={value} of AutoencodingObjective: need a number that is not negative"
            )

    def draw(self, model: Autoencoder, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        draws = {"eps": noise.normal("eps", model.latent_shape, model.dtype)}
        if self.adversarial_weight:  # on the host, where the step looks at it without waiting for a device
            draws["adversarial"] = torch.full((len(batch.raw),), noise.step >= self.adversarial_start)
        return draws

    def at(
        self,
        model: Autoencoder,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        x = model.codec.encode(batch.raw, model.dtype)
        latents, x_hat = model.network(x, draws["eps"])
        x_hat = x_hat.to(x.dtype)
        loss = negative_log_likelihood(x, x_hat, model.log_scale, self.error)
        training = torch.is_grad_enabled()
        if self.perceptual_weight and training:
            loss = loss + self.perceptual_weight * perceptual_distance(x, x_hat)
        rest = self.kl_weight * latents.divergence() / x[0].numel()
        if latents.commitment is not None:
            rest = rest + latents.commitment
        if self.adversarial_weight and training and bool(draws["adversarial"].all()):
            rest = rest + self._adversarial(model, x, x_hat, loss)
        return loss + rest

    def _adversarial(self, model: Autoencoder, x: Tensor, x_hat: Tensor, loss: Tensor) -> Tensor:
        """What the discriminator thinks of reconstructions, scaled, and its own loss."""
        discriminator = model.discriminator
        if discriminator is None:
            raise UsageError(
                f"adversarial_weight={self.adversarial_weight}: the model has no discriminator; make it with "
                "discriminator=PatchDiscriminator(channels_in), or set the weight to 0"
            )
        asked = -_judged(_constant(discriminator, x_hat))
        last = model.plain().output_weight()
        norms = [_norm_of_gradient(part, last) for part in (loss, asked)]
        scale = (norms[0] / norms[1].clamp(min=torch.finfo(norms[1].dtype).tiny)).clamp(max=LARGEST)
        real, made = discriminator(x), discriminator(x_hat.detach())
        own = 0.5 * (_judged(F.relu(1 - real)) + _judged(F.relu(1 + made)))
        return self.adversarial_weight * scale * asked + own


def negative_log_likelihood(x: Tensor, x_hat: Tensor, log_scale: Tensor, error: str) -> Tensor:
    """-log p(x | z) / D of each sample, `(B,)`, for reconstructions x_hat and log of the scale of errors."""
    scaled = (x - x_hat).flatten(1) * (-log_scale).exp()
    if error == "l1":
        return scaled.abs().mean(1) + log_scale + math.log(2)
    return 0.5 * scaled.square().mean(1) + log_scale + 0.5 * math.log(2 * math.pi)


def perceptual_distance(x: Tensor, x_hat: Tensor) -> Tensor:
    """How far two images look apart, `(B,)`: a mean over stages of EfficientNet-lite0 and over places of squared
    distances of features of length 1, so from 0 to 4 (the idea of Zhang et al. 2018, without weights of channels).

    Args:
        x, x_hat: images `(B, 3, H, W)` or `(B, 1, H, W)` whose levels go from -1 to 1.

    Raises:
        UsageError: for other samples, or if the weights are not installed.
    """
    require(
        x.ndim == 4 and x.shape[1] in (1, 3),
        f"perceptual_weight: compares images of 1 or 3 channels, and the data have shape {tuple(x.shape[1:])}; set it "
        "to 0",
    )
    network = _perceptual(x.device)
    ours, theirs = (network.pyramid(_as_photo(images)) for images in (x, x_hat))
    distances = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).flatten(1).mean(1)
        for a, b in zip(ours[:STAGES], theirs[:STAGES], strict=True)
    ]
    return torch.stack(distances).mean(0).to(x.dtype)


@functools.lru_cache(maxsize=2)
def _perceptual(device: torch.device) -> EfficientNetLite0:
    return load(installed_file()).to(device)


def _as_photo(images: Tensor) -> Tensor:
    """Images as EfficientNet takes them: (level - 127) / 128 for levels from 0 to 255, three channels, float32."""
    return ((images.float() * 127.5 + 0.5) / 128).expand(-1, 3, -1, -1)


def _judged(patches: Tensor) -> Tensor:
    """The mean over the patches of each sample."""
    return patches.flatten(1).mean(1)


def _constant(network: nn.Module, x: Tensor) -> Tensor:
    """The output of a network whose weights are constants: the gradient goes to x alone."""
    weights = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    output: Tensor = torch.func.functional_call(network, weights, (x,))
    return output


def _norm_of_gradient(losses: Tensor, parameter: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(losses.sum(), parameter, retain_graph=True)
    return gradient.norm()

r"""What data cost through an autoencoder: a bound on -log P(raw) from a density of its latents.

With the encoder's law q(z | raw), the decoder's p(raw | z) and any density p(z) of latents,

    -log P(raw)  <=  E_q[ -log P(raw | z) ]  +  E_q[ log q(z | raw) - log p(z) ],

the reconstruction and the rate (Kingma and Welling 2014). The density of a latent diffusion model is that of its flow,
or a bound (Vahdat et al. 2021 train both together). P(raw | z) of whole numbers is the probability that the Laplace or
Gaussian law around the decoder's output, of the scale that was learned with it, has in the unit interval around raw;
the ends of the range take the tails. Of other data it is a density, in raw units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.models.latent_codec import AutoencoderCodec


class LatentDraw(NamedTuple):
    """A draw of latents for each sample of a batch.

    Attributes:
        z: in the units of a latent model, `(B, *latent_shape)`.
        log_q: log q(z | raw), nats `(B,)`, in these units.
        log_likelihood: log P(raw | z), nats `(B,)`; of data that are not whole numbers a density in raw units.
    """

    z: Tensor
    log_q: Tensor
    log_likelihood: Tensor


@torch.no_grad()
def draw_latents(codec: AutoencoderCodec, raw: Tensor, eps: Tensor, ends: tuple[float, float] | None) -> LatentDraw:
    """Draws latents of raw data, with what they cost.

    Args:
        codec: of an autoencoder whose latents have a variance.
        raw: data `(B, *raw_shape)`.
        eps: standard normal numbers `(B, *latent_shape)`.
        ends: smallest and largest value of whole numbers; None for data that are not.

    Raises:
        UsageError: for an autoencoder whose latents have no variance.
    """
    mean, std = codec.posterior(raw, eps.dtype)
    if std is None:
        raise UsageError(
            "the bound through a decoder: needs latents with a variance, as those of kind='kl'; this autoencoder's are "
            "points, whose density is infinite"
        )
    z = mean + std * eps
    log_q = (-0.5 * eps.square() - std.log() - 0.5 * math.log(2 * math.pi)).double().flatten(1).sum(1)
    return LatentDraw(z, log_q, _log_likelihood(codec, raw, z, ends))


def _log_likelihood(codec: AutoencoderCodec, raw: Tensor, z: Tensor, ends: tuple[float, float] | None) -> Tensor:
    """log P(raw | z) of each sample in nats, `(B,)`."""
    scaling = codec.autoencoder.codec
    require(
        isinstance(scaling, Scaling),
        f"the bound through a decoder: needs an autoencoder with a Scaling of the data, not {type(scaling).__name__}",
    )
    assert isinstance(scaling, Scaling)
    x_hat = codec.decode_scaled(z).double()
    scale = codec.autoencoder.log_scale.double().exp()
    x = scaling.encode(raw, torch.float64)
    error = codec.error
    if ends is None:
        density = _log_density((x - x_hat) / scale, error) - scale.log()
        return density.flatten(1).sum(1) - scaling.log_volume(tuple(raw.shape[1:]))
    half = scaling.encode_change(torch.full_like(x, 0.5)).abs()
    low, high = ((x - x_hat + side * half) / scale for side in (-1, 1))
    low = torch.where(raw <= ends[0], -math.inf, low)
    high = torch.where(raw >= ends[1], math.inf, high)
    return log_mass(low, high, error).flatten(1).sum(1)


def log_mass(low: Tensor, high: Tensor, error: str) -> Tensor:
    """Log of the probability of an interval under the standard Laplace ("l1") or Gaussian ("l2") law.

    Intervals above 0 are mirrored, so that no probability is a difference of numbers near 1.
    """
    mirrored = low + high > 0
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    below, above = _log_cdf(low, error), _log_cdf(high, error)
    return above + torch.log(-torch.expm1(below - above))


def _log_cdf(x: Tensor, error: str) -> Tensor:
    if error == "l2":
        return torch.special.log_ndtr(x)
    return torch.where(x < 0, x - math.log(2), torch.log1p(-0.5 * torch.exp(-x.clamp(min=0))))


def _log_density(x: Tensor, error: str) -> Tensor:
    return -x.abs() - math.log(2) if error == "l1" else -0.5 * x.square() - 0.5 * math.log(2 * math.pi)

"""Data in the latents of an autoencoder, encoded once before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scoresde._batches import batches, choose_batch_size
from scoresde.data.arrays import ArrayData
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.latent_codec import AutoencoderCodec, Encoded


@torch.no_grad()
def encoded(
    data: ArrayData,
    codec: AutoencoderCodec,
    device: torch.device,
    advance: Callable[[int], None] = lambda count: None,
) -> ArrayData:
    """The data with latents in place of raw values; those in a file stay as they are, and are encoded batch by batch.

    Args:
        data: the data set, in raw values.
        codec: gives the latents, and their deviations if the autoencoder has any.
        device: where to compute.
        advance: is told how many samples are encoded.

    Raises:
        UsageError: for data that the autoencoder does not take.
    """
    shape = codec.encoded_shape(data.shape)
    if not isinstance(data.values, Tensor):
        return replace(data, codec=codec)
    parts = []
    for part in batches(len(data), choose_batch_size(None, data.shape, device)):
        mean, std = codec.posterior(data.values[part].to(device))
        parts.append((mean if std is None else torch.cat([mean, std], 1)).cpu())
        advance(part.stop)
    return replace(data, values=torch.cat(parts), codec=Encoded(codec, shape[0]))


@torch.no_grad()
def latent_moments(model: Autoencoder, data: ArrayData) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of a data set by channel, `(latent_channels,)`, float64 on the host.

    The latents are as the network gives them, drawn if they are random: the variance is that of their means and the
    mean of their variances.
    """
    count = 0
    sums = torch.zeros(2, model.network.latent_channels, dtype=torch.float64)
    first: Tensor | None = None  # a mean that is about right, so that squares lose no digits
    for part in batches(len(data), choose_batch_size(None, data.shape, model.device)):
        latents = model.network.encode(model.codec.encode(data.values[part].to(model.device), model.dtype))
        mean = _by_channel(latents.mean)
        first = mean.mean(1) if first is None else first
        shifted = mean - first[:, None]
        sums[0] += shifted.sum(1)
        sums[1] += shifted.square().sum(1)
        if latents.log_variance is not None:
            sums[1] += _by_channel(latents.log_variance).exp().sum(1)
        count += mean.shape[1]
    assert first is not None
    shift = sums[0] / count
    return first + shift, (sums[1] / count - shift.square()).clamp(min=0).sqrt()


def _by_channel(latents: Tensor) -> Tensor:
    """Latents `(B, C, ...)` as `(C, m)`, float64 on the host."""
    return latents.double().cpu().transpose(0, 1).flatten(1)

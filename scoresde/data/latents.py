"""Data in the latents of an autoencoder, encoded once before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scoresde._batches import batches, choose_batch_size
from scoresde.data.arrays import ArrayData
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

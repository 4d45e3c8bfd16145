r"""Autoencoders: a network that encodes data to latents and decodes them, and the scale of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from scoresde.codec import Codec
from scoresde.condition import Condition
from scoresde.models.base import TrainedModel
from scoresde.networks.autoencoder import AutoencoderNetwork


@final
class Autoencoder(TrainedModel):
    """An autoencoder in training, or trained.

    Args:
        network: encodes and decodes samples in the units of the codec.
        shape: shape of one sample, in these units.
        codec: the map from raw data to the units of the network and back.

    Attributes:
        latent_mean, latent_std: of the latents of the training set, `(latent_channels,)`; measured after training.
        log_scale: log of the scale of the reconstruction's error, learned with the network.
    """

    role = "autoencoder"
    own_state = frozenset({"latent_mean", "latent_std", "log_scale"})
    network: AutoencoderNetwork
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, network: AutoencoderNetwork, shape: Sequence[int], codec: Codec) -> None:
        super().__init__(network, shape, codec)
        channels = network.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def with_network(self, network: torch.nn.Module) -> Autoencoder:
        raise NotImplementedError

    def check_cond(self, cond: Condition) -> None:
        """Accepts every condition: none is used."""

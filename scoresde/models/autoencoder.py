r"""Autoencoders: a network that encodes data to latents and decodes them, and the scale of the latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.models.base import TrainedModel, plain_network
from scoresde.networks.autoencoder import AutoencoderNetwork

RATE = 10.0  # an optimiser that moves every parameter by its learning rate would take long to shrink the scale
CONSTANT = 1e-8  # of its mean: a deviation that is rounding


@final
class Autoencoder(TrainedModel):
    """An autoencoder in training, or trained.

    Args:
        network: encodes and decodes samples in the units of the codec.
        shape: shape of one sample, in these units.
        codec: the map from raw data to the units of the network and back; the identity by default.
        discriminator: tells samples from what they are decoded to, `(B, *shape)` to one number or several, `(B, ...)`;
            trained together with the network by an adversarial objective, and used for nothing else. None for none.

    Attributes:
        latent_mean, latent_std: of the latents of the training set, `(latent_channels,)`; measured after training.
        raw_scale: log of the scale of the reconstruction's error over RATE, learned with the network.
        latent_shape: shape of the latents of one sample.

    Raises:
        UsageError: for a shape that the network does not take.
    """

    role = "autoencoder"
    own_state = frozenset({"latent_mean", "latent_std", "raw_scale"})
    network: AutoencoderNetwork
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        codec: Codec = Scaling(),  # noqa: B008  frozen
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__(network, shape, codec)
        inner = plain_network(network)
        require(
            isinstance(inner, AutoencoderNetwork),
            f"network of {type(inner).__name__}: need an AutoencoderNetwork, such as ConvAutoencoder(channels_in=3)",
        )
        self.latent_shape = self.plain().latent_shape(self.shape)
        self.discriminator = discriminator
        self.register_buffer("latent_mean", torch.zeros(self.latent_shape[0]))
        self.register_buffer("latent_std", torch.ones(self.latent_shape[0]))
        self.raw_scale = nn.Parameter(torch.zeros(()))

    @property
    def log_scale(self) -> Tensor:
        """Log of the scale of the reconstruction's error, in the units of the codec."""
        return RATE * self.raw_scale

    def plain(self) -> AutoencoderNetwork:
        """The network without what training may have put around it."""
        inner = plain_network(self.network)
        assert isinstance(inner, AutoencoderNetwork)
        return inner

    def with_network(self, network: nn.Module) -> Autoencoder:
        other = Autoencoder(network, self.shape, self.codec, self.discriminator)
        other.latent_mean = self.latent_mean
        other.latent_std = self.latent_std
        other.raw_scale = self.raw_scale
        return other

    def check_cond(self, cond: Condition) -> None:
        """Accepts every condition: none is used."""

    @torch.no_grad()
    def measure_latents(self, raw: Iterable[Tensor]) -> None:
        """Sets `latent_mean` and `latent_std` to those of the latents, channel by channel.

        Latents are draws: to the variance of their means comes the mean of their variances. A constant channel gets
        deviation 1.

        Args:
            raw: the raw data in batches; sums are in float64.

        Raises:
            UsageError: for no data.
        """
        count = 0
        first = torch.zeros(len(self.latent_mean), dtype=torch.float64, device=self.device)
        second = torch.zeros_like(first)
        with self.eval_mode():
            for batch in raw:
                latents = self.plain().encode(self.codec.encode(batch.to(self.device), self.dtype))
                rows = latents.mean.double().movedim(1, -1).flatten(0, -2)
                if latents.log_variance is not None:
                    second += latents.log_variance.double().exp().movedim(1, -1).flatten(0, -2).sum(0)
                count, before = count + len(rows), count
                step = rows.mean(0) - first
                first += step * (len(rows) / count)
                second += (rows - rows.mean(0)).square().sum(0) + step.square() * (before * len(rows) / count)
        require(count > 0, "data: are empty; the scale of latents is measured on at least one batch")
        std = (second / count).sqrt()
        self.latent_mean.copy_(first)
        self.latent_std.copy_(torch.where(std > CONSTANT * first.abs(), std, 1.0))

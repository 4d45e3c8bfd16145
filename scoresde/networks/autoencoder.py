r"""Networks that make few numbers of a sample, and a sample of them: the contract, and the linear one.

An encoder gives q(z | x) = N(mean, exp(log_variance)), or one point, or one of finitely many codes; a decoder gives the
middle of p(x | z). They are plain PyTorch: `scoresde.models.Autoencoder` adds units, `scoresde.autoencoding` a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from scoresde.errors import require


class Latents(NamedTuple):
    """What an encoder makes of a batch.

    Attributes:
        mean: of z, `(B, C_z, *sizes)`; z itself if there is no variance, and the value of its code if there are codes.
        log_variance: of z, in the same shape; None for a point.
        codes: numbers of the codes, int64 `(B, *sizes)`; None without.
        commitment: what learning a codebook adds to a loss, `(B,)`; None for encoders that learn none.
    """

    mean: Tensor
    log_variance: Tensor | None = None
    codes: Tensor | None = None
    commitment: Tensor | None = None

    def draw(self, eps: Tensor) -> Tensor:
        """z = mean + std eps for standard normal numbers of its shape; the mean if there is no variance."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (0.5 * self.log_variance).exp() * eps

    def divergence(self) -> Tensor:
        """KL(q(z | x) || N(0, I)) of each sample in nats, `(B,)`, a sum over the entries of z; 0 without a variance."""
        if self.log_variance is None:
            return self.mean.new_zeros(len(self.mean))
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        mean, log_variance = self.mean.to(wide), self.log_variance.to(wide)
        terms = mean.square() + log_variance.expm1() - log_variance
        return 0.5 * terms.flatten(1).sum(1)


class AutoencoderNetwork(nn.Module, ABC):
    """An encoder and a decoder.

    If its class is registered (`scoresde.register`), a file can describe it.

    Attributes:
        channels_in: channels of a sample; its size if it is a vector.
        latent_channels: channels C_z of z.
        factor: by which each size of a sample is divided.
        dims: sizes of a sample: 0 for vectors, 1 for series, 2 for images.
    """

    channels_in: int
    latent_channels: int
    factor: int
    dims: int

    @abstractmethod
    def encode(self, x: Tensor) -> Latents:
        """The latents of samples `(B, channels_in, *sizes)`.

        Raises:
            UsageError: for samples of another shape, or of sizes that `factor` does not divide.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The samples `(B, channels_in, *sizes)` of z `(B, latent_channels, *smaller sizes)`.

        A decoder of codes takes each place of z to the nearest code first, so that any z will do.
        """

    @abstractmethod
    def output_weight(self) -> Tensor:
        """The weight of the decoder's last layer."""

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Latents, Tensor]:
        """Latents, and the samples that a draw of them is decoded to.

        Args:
            x: samples `(B, channels_in, *sizes)`.
            eps: standard normal numbers of the shape of z.
        """
        latents = self.encode(x)
        return latents, self.decode(latents.draw(eps))

    @final
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of z for a sample's shape.

        Raises:
            UsageError: for samples of other channels or axes, or a size that `factor` does not divide.
        """
        require(
            len(shape) == self.dims + 1 and shape[0] == self.channels_in,
            f"shape={tuple(shape)}: this autoencoder takes ({self.channels_in}, *sizes) with {self.dims} sizes; make "
            "it with the channels_in and dims of the samples",
        )
        for side in shape[1:]:
            require(
                side > 0 and side % self.factor == 0,
                f"shape={tuple(shape)}: its side {side} is not a multiple of {self.factor}, by which this autoencoder "
                "divides sides; crop or enlarge the data, or take fewer multipliers",
            )
        return (self.latent_channels, *(side // self.factor for side in shape[1:]))

    @final
    def check_latents(self, z: Tensor) -> None:
        """Raises `UsageError` unless z is a batch of latents."""
        require(
            z.ndim == self.dims + 2 and z.shape[1] == self.latent_channels,
            f"z of shape {tuple(z.shape)}: this autoencoder decodes (B, {self.latent_channels}, *sizes) with "
            f"{self.dims} sizes",
        )


@final
class LinearAutoencoder(AutoencoderNetwork):
    """Vectors through an affine map, to a normal law of a variance that is the same for all, and back.

    q(z | x) = N(V x + c, diag exp(log_variance)), and x_hat = W z + b. With the Gaussian likelihood of
    `AutoencodingObjective` its optimum is probabilistic principal component analysis (Tipping and Bishop 1999), where
    the bound is the log density itself.

    Args:
        channels_in: size of a vector.
        latent_channels: size of z.
    """

    factor = 1
    dims = 0

    def __init__(self, channels_in: int, latent_channels: int) -> None:
        super().__init__()
        require(
            1 <= latent_channels <= channels_in,
            f"latent_channels={latent_channels}: need 1 to channels_in={channels_in}",
        )
        self.channels_in = channels_in
        self.latent_channels = latent_channels
        self.encoder = nn.Linear(channels_in, latent_channels)
        self.log_variance = nn.Parameter(torch.zeros(latent_channels))
        self.decoder = nn.Linear(latent_channels, channels_in)

    def encode(self, x: Tensor) -> Latents:
        self.latent_shape(x.shape[1:])
        mean = self.encoder(x)
        return Latents(mean, self.log_variance.to(mean.dtype).expand(mean.shape))

    def decode(self, z: Tensor) -> Tensor:
        self.check_latents(z)
        return self.decoder(z)

    def output_weight(self) -> Tensor:
        return self.decoder.weight

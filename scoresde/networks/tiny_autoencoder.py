"""The small autoencoders of the TAESD family (Boer Bohan 2023): convolutions and rectifiers."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.networks.autoencoder import AutoencoderNetwork, Latents

POOL_GROUPS = 4
POOL_WIDTH = 4  # times the channels


@final
class Bound(nn.Module):
    """b tanh(z / b)."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, z: Tensor) -> Tensor:
        return self.bound * (z / self.bound).tanh()


@final
class TinyBlock(nn.Module):
    """relu(x + three convolutions); with `pooled` x is first changed by channels that are normalised over all places,
    so that each place learns of the others."""

    def __init__(self, channels: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )
        wide = POOL_WIDTH * channels
        self.pool = (
            nn.Sequential(
                nn.Conv2d(channels, wide, 1, bias=False),
                nn.GroupNorm(POOL_GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(x + self.conv(x))


@final
class TinyAutoencoder(AutoencoderNetwork):
    """Images with levels from 0 to 1 to latents, without a variance, and back.

    The layers of `encoder` and `decoder` are numbered as in the published files.

    Args:
        channels_in: channels of an image.
        channels: features at every level.
        latent_channels: channels of z.
        encoder_blocks: blocks at each level, from the finest; each level after the first halves the sizes.
        decoder_blocks: blocks at each level, from the coarsest; as many levels.
        pooled: whether blocks at the coarsest level see all places.
        bound: b of b tanh(z / b), through which the decoder sees z.
    """

    dims = 2

    def __init__(
        self,
        channels_in: int = 3,
        channels: int = 64,
        latent_channels: int = 4,
        encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        pooled: bool = False,
        bound: float = 3.0,
    ) -> None:
        super().__init__()
        for name, value in {
            "channels_in": channels_in,
            "channels": channels,
            "latent_channels": latent_channels,
        }.items():
            require(value >= 1, f"{name}={value} of TinyAutoencoder: need at least 1")
        require(
            len(encoder_blocks) == len(decoder_blocks) >= 1 and min((*encoder_blocks, *decoder_blocks)) >= 0,
            f"encoder_blocks={encoder_blocks} and decoder_blocks={decoder_blocks} of TinyAutoencoder: need a number "
            "for each level, equally many",
        )
        require(bound > 0, f"bound={bound} of TinyAutoencoder: must be positive")
        self.channels_in = channels_in
        self.channels = channels
        self.latent_channels = latent_channels
        self.encoder_blocks = tuple(encoder_blocks)
        self.decoder_blocks = tuple(decoder_blocks)
        self.pooled = pooled
        self.bound = bound
        self.factor = 2 ** (len(encoder_blocks) - 1)
        coarsest = len(encoder_blocks) - 1
        down: list[nn.Module] = [_conv(channels_in, channels)]
        for level, count in enumerate(encoder_blocks):
            if level:
                down.append(_conv(channels, channels, stride=2, bias=False))
            down += [TinyBlock(channels, pooled and level == coarsest) for _ in range(count)]
        self.encoder = nn.Sequential(*down, _conv(channels, latent_channels))
        up: list[nn.Module] = [Bound(bound), _conv(latent_channels, channels), nn.ReLU()]
        for level, count in enumerate(decoder_blocks):
            if level:
                up += [nn.Upsample(scale_factor=2), _conv(channels, channels, bias=False)]
            up += [TinyBlock(channels, pooled and level == 0) for _ in range(count)]
        self.decoder = nn.Sequential(*up, _conv(channels, channels_in))

    def encode(self, x: Tensor) -> Latents:
        self.latent_shape(x.shape[1:])
        return Latents(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        self.check_latents(z)
        return self.decoder(z)

    def output_weight(self) -> Tensor:
        return self.decoder[-1].get_parameter("weight")


def _conv(c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=bias)

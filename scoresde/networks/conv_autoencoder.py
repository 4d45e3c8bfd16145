"""The residual convolutional autoencoder of latent diffusion (Rombach et al. 2022), for series and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.networks.autoencoder import AutoencoderNetwork, Latents
from scoresde.networks.layers import Attention, ResBlock, StridedConv, Style, check_levels
from scoresde.networks.quantizers import FiniteQuantizer, Quantizer, VectorQuantizer
from scoresde.networks.resampling import POOL

KINDS = ("kl", "fsq", "vq", "area")
LOG_VARIANCES = (-30.0, 20.0)  # to which those of an encoder are clamped


@final
@dataclass(frozen=True)
class Levels:
    """What both halves of an autoencoder have in common.

    Attributes:
        channels: features at the finest level, before its first block.
        widths: features of each level, from the finest.
        num_blocks: residual blocks a level on the way down; one more on the way up.
        style: of the layers.
        attention: whether there is attention at the coarsest level.
    """

    channels: int
    widths: tuple[int, ...]
    num_blocks: int
    style: Style
    attention: bool

    def middle(self) -> nn.ModuleList:
        """The layers at the coarsest level."""
        c = self.widths[-1]
        blocks = [ResBlock(c, c, 0, self.style) for _ in range(2)]
        return nn.ModuleList([blocks[0], Attention(c, self.style), blocks[1]] if self.attention else blocks)


@final
class Reducer(nn.Module):
    """Samples of some channels to those of the latents, down all levels."""

    def __init__(self, c_in: int, c_out: int, levels: Levels) -> None:
        super().__init__()
        style = levels.style
        self.first = style.conv(c_in, levels.channels)
        self.down = nn.ModuleList()
        c = levels.channels
        for level, width in enumerate(levels.widths):
            if level:
                self.down.append(StridedConv(c, c, style))
            for _ in range(levels.num_blocks):
                self.down.append(ResBlock(c, c := width, 0, style))
        self.middle = levels.middle()
        self.norm = style.norm(c)
        self.last = style.conv(c, c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in (*self.down, *self.middle):
            h = layer(h)
        return self.last(F.silu(self.norm(h)))


@final
class Enlarger(nn.Module):
    """Latents of some channels to those of the samples, up all levels."""

    def __init__(self, c_in: int, c_out: int, levels: Levels) -> None:
        super().__init__()
        style = levels.style
        c = levels.widths[-1]
        self.first = style.conv(c_in, c)
        self.middle = levels.middle()
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(levels.widths))):
            for _ in range(levels.num_blocks + 1):
                self.up.append(ResBlock(c, c := width, 0, style))
            if level:
                self.up.append(style.conv(c, c))
        self.norm = style.norm(c)
        self.last = style.conv(c, c_out)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        for layer in self.middle:
            h = layer(h)
        for layer in self.up:
            h = layer(h if isinstance(layer, ResBlock) else F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.norm(h)))


@final
class ConvAutoencoder(AutoencoderNetwork):
    """Residual blocks down to the coarsest level, and up again; attention between them if asked for.

    With kind "kl" and 1x1 convolutions around the latents it is the network of Stable Diffusion's autoencoders.

    Args:
        channels_in: channels of a sample; x has shape `(B, channels_in, *sizes)`, with as many sizes as `dims`.
        channels: features at the finest level.
        multipliers: features of each level as multiples of `channels`; each level after the first halves the sizes, so
            `factor` is 2^(levels - 1).
        num_blocks: residual blocks a level on the way down; one more on the way up.
        latent_channels: channels of z.
        kind: what z is: "kl", a normal law; "fsq", rounded channels (`FiniteQuantizer`); "vq", vectors of a codebook
            (`VectorQuantizer`); "area", the mean of each patch of the sample, so a smaller sample, which the decoder
            learns to enlarge.
        levels: of "fsq": values of each latent channel.
        codebook_size: of "vq": vectors in the codebook.
        dims: 1 for series, 2 for images.
        middle_attention: whether there is attention over all places at the coarsest level, with a single head.
        latent_convs: put a 1x1 convolution behind the encoder and before the decoder.
        norm_groups: most groups of a normalisation; 0 for up to 8, of at least two channels.
        norm_eps: added to variances by normalisation.
    """

    kind: str
    num_blocks: int

    def __init__(
        self,
        channels_in: int,
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2, 4),
        num_blocks: int = 1,
        latent_channels: int = 4,
        kind: str = "kl",
        levels: tuple[int, ...] = (),
        codebook_size: int = 512,
        dims: int = 2,
        middle_attention: bool = False,
        latent_convs: bool = False,
        norm_groups: int = 0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_levels("ConvAutoencoder", channels, multipliers, num_blocks)
        require(channels_in >= 1, f"channels_in={channels_in} of ConvAutoencoder: need at least 1")
        require(latent_channels >= 1, f"latent_channels={latent_channels} of ConvAutoencoder: need at least 1")
        require(
            dims in (1, 2),
            f"dims={dims} of ConvAutoencoder: need 1 for series or 2 for images; vectors take a LinearAutoencoder",
        )
        require(kind in KINDS, f"kind={kind!r} of ConvAutoencoder: need {', '.join(KINDS)}")
        require(
            kind != "fsq" or len(levels) > 0,
            "levels=() of ConvAutoencoder: kind='fsq' needs the number of values of each latent channel, as in "
            "(8, 5, 5, 5)",
        )
        need = {"fsq": len(levels), "area": channels_in}.get(kind, latent_channels)
        require(
            latent_channels == need,
            f"latent_channels={latent_channels} of ConvAutoencoder: kind={kind!r} with levels={tuple(levels)} and "
            f"channels_in={channels_in} needs {need}",
        )
        for name, value in arguments.items():  # a file describes the network by its arguments
            setattr(self, name, value)
        self.factor = 2 ** (len(multipliers) - 1)
        style = Style(dims=dims, head_channels=0, norm_groups=norm_groups, norm_eps=norm_eps)
        widths = tuple(channels * multiplier for multiplier in multipliers)
        both = Levels(channels, widths, num_blocks, style, middle_attention)
        c_out = latent_channels * (2 if kind == "kl" else 1)
        learns = kind != "area"
        self.encoder = Reducer(channels_in, c_out, both) if learns else None
        self.behind = style.conv(c_out, c_out, 1) if learns and latent_convs else nn.Identity()
        self.quantizer = _quantizer(kind, tuple(levels), codebook_size, latent_channels)
        self.before = style.conv(latent_channels, latent_channels, 1) if latent_convs else nn.Identity()
        self.decoder = Enlarger(latent_channels, channels_in, both)

    def encode(self, x: Tensor) -> Latents:
        self.latent_shape(x.shape[1:])
        if self.encoder is None:
            return Latents(POOL[self.dims](x, self.factor))
        h = self.behind(self.encoder(x))
        if self.quantizer is None:
            mean, log_variance = h.chunk(2, 1)
            return Latents(mean, log_variance.clamp(*LOG_VARIANCES))
        values, codes, commitment = self.quantizer(h)
        return Latents(values, None, codes, commitment)

    def decode(self, z: Tensor) -> Tensor:
        self.check_latents(z)
        if self.quantizer is not None:
            z = self.quantizer.nearest(z)
        return self.decoder(self.before(z))

    def output_weight(self) -> Tensor:
        return self.decoder.last.get_parameter("weight")

    @property
    def num_codes(self) -> int:
        """The codes of a place; 0 if they are not finitely many."""
        return 0 if self.quantizer is None else self.quantizer.num_codes


def _quantizer(kind: str, levels: tuple[int, ...], codebook_size: int, channels: int) -> Quantizer | None:
    if kind == "fsq":
        return FiniteQuantizer(levels)
    return VectorQuantizer(codebook_size, channels) if kind == "vq" else None

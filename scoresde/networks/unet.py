"""A U-Net for series, images and volumes of any size, from a small one to those of the field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.conditions import Takes
from scoresde.networks.embedding import Conditioning, Features, LabelledNetwork
from scoresde.networks.layers import (
    Attention,
    ResBlock,
    StridedConv,
    Style,
    Tokens,
    UpConv,
    check_levels,
    check_samples,
)

PYRAMIDS = ("none", "skip", "residual")


class Encoder(nn.Module):
    """The way down of a U-Net: residual blocks down to the coarsest level, and attention there.

    Args:
        style: of the layers.
        conditioning: of the blocks.
        width: size of its embedding.
        input_pyramid, pyramid_combine, attention_levels, middle_attention, checkpointing: as of `UNet`, and so are the
            others.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        style: Style,
        conditioning: Conditioning,
        width: int,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        input_pyramid: str = "none",
        pyramid_combine: str = "sum",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        require(channels_in >= 1, f"channels_in={channels_in} of {type(self).__name__}: need at least 1")
        require(input_pyramid in PYRAMIDS, f"input_pyramid={input_pyramid!r}: need {', '.join(PYRAMIDS)}")
        require(pyramid_combine in ("sum", "cat"), f"pyramid_combine={pyramid_combine!r}: need 'sum' or 'cat'")
        self.channels_in = channels_in
        self.channels = channels
        self.multipliers = tuple(multipliers)
        self.num_blocks = num_blocks
        self.attention_levels = tuple(attention_levels)
        self.middle_attention = middle_attention
        self.input_pyramid = input_pyramid
        self.pyramid_combine = pyramid_combine
        self.checkpointing = checkpointing
        self.style = style
        self.conditioning = conditioning
        self.resampler = style.resampler()
        self.first = style.conv(channels_in, channels)
        self.down = nn.ModuleList()
        self.pyramid_down = nn.ModuleList()
        c = channels
        seen = channels_in
        for level, multiplier in enumerate(self.multipliers):
            if level:
                self.down.append(self._halving(c, width))
                if input_pyramid == "skip":
                    self.pyramid_down.append(style.conv(channels_in, c, 1))
                    c *= 2 if pyramid_combine == "cat" else 1
                elif input_pyramid == "residual":
                    self.pyramid_down.append(StridedConv(seen, c, style))
                    seen = c
            for _ in range(num_blocks):
                attention = level in self.attention_levels
                self.down.append(ResBlock(c, c := channels * multiplier, width, style, attention=attention))
        middle = [ResBlock(c, c, width, style), Attention(c, style), ResBlock(c, c, width, style)]
        self.middle = nn.ModuleList(middle if middle_attention else middle[::2])

    def _halving(self, c: int, width: int) -> nn.Module:
        """What halves the size of features."""
        style = self.style
        if style.resample != "conv":
            return ResBlock(c, c, width, style, "down")
        return StridedConv(c, c, style) if style.fir or style.end_padding else style.conv(c, c, 3, stride=2)

    def widths(self) -> list[int]:
        """The channels of the features that `encode` gives, from the finest level to the coarsest."""
        doubled = self.input_pyramid == "skip" and self.pyramid_combine == "cat"
        found = [self.channels]
        for level, multiplier in enumerate(self.multipliers):
            found += [found[-1] * (1 + doubled)] if level else []
            found += [self.channels * multiplier] * self.num_blocks
        return found

    def encode(self, x: Tensor, embedding: Tensor, tokens: Tokens | None = None) -> tuple[Tensor, list[Tensor]]:
        """The features of samples at the coarsest level, and those after each layer on the way."""
        h = self.first(x)
        passed = [h]
        pyramid = x
        for index, layer in enumerate(self.down):
            h = self._run(layer, h, embedding, tokens)
            level, place = divmod(index + 1, self.num_blocks + 1)
            if place == 0 and self.input_pyramid != "none":
                h, pyramid = self._joined(h, pyramid, level - 1)
            passed.append(h)
        for layer in self.middle:
            h = layer(h, tokens) if isinstance(layer, Attention) else self._run(layer, h, embedding, tokens)
        return h, passed

    def _joined(self, h: Tensor, pyramid: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """The features of a level with the input, and the input at that level's size."""
        layer = self.pyramid_down[index]
        if self.input_pyramid == "residual":
            h = self.style.add(layer(pyramid), h)
            return h, h
        pyramid = self.resampler.down(pyramid)
        seen = layer(pyramid)
        return torch.cat([seen, h], 1) if self.pyramid_combine == "cat" else seen + h, pyramid

    def _run(
        self, layer: nn.Module, h: Tensor, embedding: Tensor, tokens: Tokens | None, size: torch.Size | None = None
    ) -> Tensor:
        """A layer's output; with `checkpointing`, its inner values are computed again in the backward pass."""
        if not isinstance(layer, ResBlock):
            return layer(h)
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, embedding, tokens, size, use_reentrant=False)
        return layer(h, embedding, tokens, size)


@final
class UNet(Encoder, LabelledNetwork):
    """Residual blocks down to the coarsest level, attention there, and up again with skip connections.

    The defaults are a small network. `scoresde.networks.presets` holds the settings of DDPM's network, DDPM++, NCSN++,
    EDM's and ADM.

    Args:
        channels_in: channels of a sample; x has shape `(B, channels_in, *sizes)`, with as many sizes as `dims`.
        channels: features at the finest level.
        multipliers: features of each level as multiples of `channels`; each further level halves the sizes.
        num_blocks: residual blocks a level on the way down; one more on the way up.
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the conditions that training hides. Above 0 the network also works without: cond may be
            None, or hold the label num_classes, which stands for "none".
        learned_variance: give a second output, from which the variance of a reverse step follows.
        dims: 1 for series, 2 for images, 3 for volumes.
        attention_levels: levels, from 0, with attention after their blocks; at the coarsest there always is some,
            between the two ways.
        attention_up: on the way up, after "every" block of these levels, or the "last" one.
        middle_attention: whether there is attention between the two ways.
        head_channels: channels of a head of attention, as nearly as possible; 0 for a single head.
        num_heads: heads, instead.
        noise_embedding: of the noise label: "octaves", "positional" or "fourier" (`Features`).
        embedding_channels: size of "positional" and "fourier"; 0: `channels`. A quarter of the embedding's.
        frequency_shift: of "positional".
        fourier_scale: of "fourier".
        resample: what halves and doubles: "conv", or residual blocks, with ("biggan") or without ("adm") weights in the
            skip connection.
        fir: kernel that filters where sizes are halved and doubled, such as (1, 3, 3, 1); none by default.
        end_padding: pad convolutions that halve at the end only.
        scale_shift: the embedding scales and shifts normalised features; otherwise it shifts them before.
        rescale: divide residual sums by sqrt(2).
        norm_groups: most groups of a normalisation; 0 for up to 8, of at least two channels.
        group_channels: fewest channels of a group, with `norm_groups`.
        norm_eps: added to variances by normalisation.
        dropout: share of the features of a block that training sets to zero.
        input_pyramid: how each level sees the input at its size: "none", "skip" or "residual" (Song et al. 2021, H.2).
        output_pyramid: how each level adds to the output, likewise.
        pyramid_combine: of an input "skip" pyramid: "sum" or "cat".
        context_channels: size of the tokens that attention also looks at; 0 for none. The condition is then a dict, as
            `Conditions` says.
        vector_channels: size of a vector to condition on; 0 for none.
        image_channels: channels of an image to condition on, which the network sees behind those of x; 0 for none.
        keeps_image: never hide the image, as upsamplers do.
        context_depth: blocks in which the tokens look at each other first, as of `Conditioning`.
        xavier: begin with Glorot and Bengio's uniform weights and no biases, as Song et al. do; otherwise with torch's.
        checkpointing: in training, compute the inner values of residual blocks twice rather than store them.
    """

    dims: int
    attention_up: str
    head_channels: int
    num_heads: int
    noise_embedding: str
    embedding_channels: int
    frequency_shift: int
    fourier_scale: float
    resample: str
    fir: tuple[float, ...]
    end_padding: bool
    scale_shift: bool
    rescale: bool
    norm_groups: int
    group_channels: int
    norm_eps: float
    dropout: float
    output_pyramid: str
    context_channels: int
    vector_channels: int
    image_channels: int
    keeps_image: bool
    context_depth: int
    xavier: bool

    def __init__(
        self,
        channels_in: int,
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        learned_variance: bool = False,
        *,
        dims: int = 2,
        attention_levels: tuple[int, ...] = (),
        attention_up: str = "every",
        middle_attention: bool = True,
        head_channels: int = 32,
        num_heads: int = 0,
        noise_embedding: str = "octaves",
        embedding_channels: int = 0,
        frequency_shift: int = 0,
        fourier_scale: float = 16.0,
        resample: str = "conv",
        fir: tuple[float, ...] = (),
        end_padding: bool = False,
        scale_shift: bool = True,
        rescale: bool = False,
        norm_groups: int = 0,
        group_channels: int = 1,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        input_pyramid: str = "none",
        output_pyramid: str = "none",
        pyramid_combine: str = "sum",
        context_channels: int = 0,
        vector_channels: int = 0,
        image_channels: int = 0,
        keeps_image: bool = False,
        context_depth: int = 0,
        xavier: bool = False,
        checkpointing: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_levels("UNet", channels, multipliers, num_blocks, attention_levels)
        style = Style(**{field.name: arguments[field.name] for field in fields(Style)})
        features_channels = embedding_channels or channels
        width = 4 * features_channels
        features = Features(noise_embedding, features_channels, frequency_shift, fourier_scale)
        conditioning = Conditioning(width, Takes.of(arguments), features)
        style.drawn(conditioning)
        require(attention_up in ("every", "last"), f"attention_up={attention_up!r}: need 'every' or 'last'")
        require(output_pyramid in PYRAMIDS, f"output_pyramid={output_pyramid!r}: need {', '.join(PYRAMIDS)}")
        require(channels_in >= 1, f"channels_in={channels_in} of UNet: need at least 1")
        super().__init__(
            channels_in + image_channels,
            channels,
            multipliers,
            num_blocks,
            style,
            conditioning,
            width,
            attention_levels,
            middle_attention,
            input_pyramid,
            pyramid_combine,
            checkpointing,
        )
        for name, value in arguments.items():  # a file describes the network by its arguments
            setattr(self, name, value)
        self.cond_dropout = label_dropout
        self.up, c = self._way_up(width)
        c_out = 2 * channels_in if learned_variance else channels_in
        self.pyramid_up = nn.ModuleList(self._output_pyramid(c_out))
        if output_pyramid != "skip":
            self.norm = style.norm(c)
            self.last = style.zero_conv(c, c_out)

    def _way_up(self, width: int) -> tuple[nn.ModuleList, int]:
        """The layers of the way up, and the channels at its end."""
        style = self.style
        layers = nn.ModuleList()
        skips = self.widths()
        c = skips[-1]
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for block in range(self.num_blocks + 1):
                attention = level in self.attention_levels and (
                    self.attention_up == "every" or block == self.num_blocks
                )
                c_in = c + skips.pop()
                layers.append(ResBlock(c_in, c := self.channels * multiplier, width, style, attention=attention))
            if level and style.resample != "conv":
                layers.append(ResBlock(c, c, width, style, "up"))
            elif level:
                layers.append(UpConv(c, c, style) if style.fir else style.conv(c, c))
        return layers, c

    def _output_pyramid(self, c_out: int) -> Iterator[nn.Module]:
        """What makes of the features of each level, from the coarsest, its part of the output."""
        style = self.style
        widths = [self.channels * multiplier for multiplier in reversed(self.multipliers)]
        for index, c in enumerate(widths):
            if self.output_pyramid == "skip":
                yield Painter(c, style.zero_conv(c, c_out), style)
            elif self.output_pyramid == "residual" and index == 0:
                yield Painter(c, style.conv(c, c), style)
            elif self.output_pyramid == "residual":
                yield UpConv(widths[index - 1], c, style) if style.fir else style.conv(widths[index - 1], c)

    def output_parameters(self) -> list[nn.Parameter]:
        """The parameters of the layers whose outputs add up to the network's."""
        if self.output_pyramid == "skip":
            return [p for part in self.pyramid_up if isinstance(part, Painter) for p in part.conv.parameters()]
        return list(self.last.parameters())

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        check_samples(x, self.channels_in, self.style.dims)
        tokens = self.conditioning.tokens(c_noise, cond)
        embedding = self.conditioning(c_noise, cond, tokens)
        h, skips = self.encode(self.conditioning.beside(x, cond), embedding, tokens)
        painted: Tensor | None = None
        for index, layer in enumerate(self.up):
            level, place = divmod(index, self.num_blocks + 2)
            if place == self.num_blocks + 1:
                h = self._enlarged(layer, h, embedding, tokens, skips[-1].shape[2:])
                continue
            h = self._run(layer, torch.cat([h, skips.pop()], 1), embedding, tokens)
            if place == self.num_blocks and self.output_pyramid != "none":
                h, painted = self._painted(self.pyramid_up[level], h, painted)
        if self.output_pyramid == "skip" and painted is not None:
            return painted
        return self.last(F.silu(self.norm(h)))

    def _enlarged(
        self, layer: nn.Module, h: Tensor, embedding: Tensor, tokens: Tokens | None, size: torch.Size
    ) -> Tensor:
        """Features at the size of the next finer level, which may have been odd."""
        if isinstance(layer, ResBlock):
            return self._run(layer, h, embedding, tokens, size)
        return _doubled(layer, h, size)

    def _painted(self, layer: nn.Module, h: Tensor, painted: Tensor | None) -> tuple[Tensor, Tensor]:
        """The features of a level, and the output up to there."""
        if painted is None:
            return h, layer(h)
        size = h.shape[2:]
        if self.output_pyramid == "skip":
            return h, self.resampler.up(painted, size) + layer(h)
        h = self.style.add(_doubled(layer, painted, size), h)
        return h, h


@final
class Painter(nn.Module):
    """A convolution of normalised features."""

    def __init__(self, channels: int, conv: nn.Module, style: Style) -> None:
        super().__init__()
        self.norm = style.norm(channels)
        self.conv = conv

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


def _doubled(layer: nn.Module, h: Tensor, size: torch.Size) -> Tensor:
    """A convolution at a size that is twice that of its input, or one less."""
    return layer(h, size) if isinstance(layer, UpConv) else layer(F.interpolate(h, size=size, mode="nearest"))

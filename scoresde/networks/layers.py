"""The layers of U-Nets, for series, images and volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import UsageError, require
from scoresde.networks.attention_weights import show_weights
from scoresde.networks.resampling import Resampler, cropped, even

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Tokens(NamedTuple):
    """What cross-attention looks at: `(B, L, C)`, and which of them are there, `(B, L)`, all if None."""

    values: Tensor
    mask: Tensor | None


@final
@dataclass(frozen=True)
class Style:
    """What the layers of a network have in common; the fields are described in `UNet`."""

    dims: int = 2
    head_channels: int = 32
    num_heads: int = 0
    resample: str = "conv"
    fir: tuple[float, ...] = ()
    end_padding: bool = False
    scale_shift: bool = True
    rescale: bool = False
    norm_groups: int = 0
    group_channels: int = 1
    norm_eps: float = 1e-5
    dropout: float = 0.0
    context_channels: int = 0
    xavier: bool = False

    def __post_init__(self) -> None:
        require(self.dims in CONV, f"dims={self.dims}: need 1 for series, 2 for images or 3 for volumes")
        require(
            self.resample in ("conv", "biggan", "adm"),
            f"resample={self.resample!r}: need 'conv', 'biggan' or 'adm'",
        )
        require(0 <= self.dropout < 1, f"dropout={self.dropout}: need 0 <= dropout < 1")
        require(
            not self.fir or (len(self.fir) % 2 == 0 and len(self.fir) >= 4 and self.fir == self.fir[::-1]),
            f"fir={self.fir}: need a symmetric kernel of 4 taps, 6 or more, as in (1, 3, 3, 1); () for none",
        )
        require(not self.fir or sum(self.fir) > 0, f"fir={self.fir}: need taps of a positive sum, as in (1, 3, 3, 1)")
        require(self.norm_eps > 0, f"norm_eps={self.norm_eps}: must be positive")
        smallest = {"head_channels": 0, "num_heads": 0, "norm_groups": 0, "group_channels": 1, "context_channels": 0}
        for name, low in smallest.items():
            require(getattr(self, name) >= low, f"{name}={getattr(self, name)}: need at least {low}")

    def conv(self, c_in: int, c_out: int, size: int = 3, stride: int = 1, padding: int | None = None) -> nn.Module:
        """A convolution that keeps the size of its input if its stride is 1."""
        padding = size // 2 if padding is None else padding
        return self.drawn(CONV[self.dims](c_in, c_out, size, stride=stride, padding=padding))

    def drawn(self, part: nn.Module) -> nn.Module:
        """A module whose weights are drawn as the style says."""
        for layer in part.modules() if self.xavier else ():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        return part

    def zero_conv(self, c_in: int, c_out: int, size: int = 3) -> nn.Module:
        """A convolution that begins as zero."""
        return zeroed(self.conv(c_in, c_out, size))

    def norm(self, channels: int) -> nn.GroupNorm:
        """Group normalisation."""
        return nn.GroupNorm(self.num_groups(channels), channels, eps=self.norm_eps)

    def num_groups(self, channels: int) -> int:
        """The groups of a normalisation.

        By default up to 8, of at least two channels: a group of one channel would remove the channel's mean, and with
        it the bias of the layer before.
        """
        if self.norm_groups == 0:
            return next((g for g in (8, 4, 2) if channels % g == 0 and channels > g), 1)
        largest = max(1, min(self.norm_groups, channels // self.group_channels))
        return next(g for g in range(largest, 0, -1) if channels % g == 0)

    def heads(self, channels: int) -> int:
        """The heads of attention."""
        if self.num_heads:
            require(
                channels % self.num_heads == 0,
                f"num_heads={self.num_heads}: does not divide the {channels} channels of a level",
            )
            return self.num_heads
        if self.head_channels == 0:
            return 1
        return next(h for h in range(max(1, channels // self.head_channels), 0, -1) if channels % h == 0)

    def add(self, h: Tensor, inner: Tensor) -> Tensor:
        """A residual sum, over sqrt(2) with `rescale`."""
        return (h + inner).mul_(math.sqrt(0.5)) if self.rescale else h + inner

    def resampler(self) -> Resampler:
        """What halves and doubles sizes without weights."""
        return Resampler(self.dims, self.fir)


def check_levels(
    cls: str, channels: int, multipliers: Sequence[int], num_blocks: int, attention_levels: Sequence[int] = ()
) -> None:
    """Raises `UsageError` for sizes that no U-Net has; arguments of `UNet`."""
    for name, value in {"channels": channels, "num_blocks": num_blocks}.items():
        require(value >= 1, f"{name}={value} of {cls}: need at least 1")
    require(
        len(multipliers) >= 1 and all(isinstance(m, int) and m >= 1 for m in multipliers),
        f"multipliers={tuple(multipliers)} of {cls}: need whole numbers of at least 1, as in (1, 2)",
    )
    require(
        all(0 <= level < len(multipliers) for level in attention_levels),
        f"attention_levels={tuple(attention_levels)} of {cls}: need levels from 0, the finest, to "
        f"{len(multipliers) - 1}",
    )


def check_samples(x: Tensor, channels: int, dims: int) -> None:
    """Raises `UsageError` unless x is a batch of samples with some channels and axes."""
    if x.ndim != dims + 2 or x.shape[1] != channels:
        raise UsageError(
            f"x of shape {tuple(x.shape)}: this network takes (B, {channels}, *sizes) with {dims} sizes; make it with "
            "the channels_in and dims of the samples"
        )


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer whose weights and biases are set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@final
class ResBlock(nn.Module):
    """Two convolutions beside a skip connection, modulated by an embedding, and attention behind them if asked for.

    With F = conv(silu(norm(h))) and the embedding e, it is skip(h) + conv(silu(norm(F) (1 + scale(e)) + shift(e))), and
    without `scale_shift` norm(F + shift(e)). With `resampling`, the size of h is halved or doubled within the block.

    Args:
        c_in, c_out: channels.
        width: size of the embedding; 0 for none, and no modulation.
        style: of the layers.
        resampling: "down", "up", or none.
        attention: whether attention over all places follows.
    """

    def __init__(
        self, c_in: int, c_out: int, width: int, style: Style, resampling: str = "", attention: bool = False
    ) -> None:
        super().__init__()
        self.style = style
        self.resampling = resampling
        self.norm_in = style.norm(c_in)
        self.norm_out = style.norm(c_out)
        self.conv_in = style.conv(c_in, c_out)
        modulates = 2 * c_out if style.scale_shift else c_out
        self.modulation = style.drawn(nn.Linear(width, modulates)) if width else None
        self.conv_out = style.zero_conv(c_out, c_out)
        projects = c_in != c_out or (bool(resampling) and style.resample == "biggan")
        self.skip = style.conv(c_in, c_out, 1) if projects else nn.Identity()
        self.resampler = style.resampler() if resampling else None
        self.attention = Attention(c_out, style) if attention else None

    def forward(
        self,
        h: Tensor,
        embedding: Tensor | None = None,
        tokens: Tokens | None = None,
        size: torch.Size | None = None,
    ) -> Tensor:
        inner = F.silu(self.norm_in(h))
        if self.resampler is not None:
            inner = self._resampled(inner, size)
            h = self._resampled(h, size)
        inner = self._modulated(self.conv_in(inner), embedding)
        inner = F.dropout(F.silu(inner), self.style.dropout, self.training)
        h = self.style.add(self.skip(h), self.conv_out(inner))
        return h if self.attention is None else self.attention(h, tokens)

    def _modulated(self, inner: Tensor, embedding: Tensor | None) -> Tensor:
        """The features between the convolutions, normalised."""
        if self.modulation is None:
            return self.norm_out(inner)
        modulation = self.modulation(embedding)
        modulation = modulation.view(*modulation.shape, *[1] * self.style.dims)
        if self.style.scale_shift:
            scale, shift = modulation.chunk(2, 1)
            return self.norm_out(inner) * (1 + scale) + shift
        return self.norm_out(inner + modulation)

    def _resampled(self, h: Tensor, size: torch.Size | None) -> Tensor:
        assert self.resampler is not None
        return self.resampler.down(h) if self.resampling == "down" else self.resampler.up(h, size)


@final
class Attention(nn.Module):
    """Self-attention over all places of a sample, then attention of the places to tokens if the style has a context."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.style = style
        self.heads = style.heads(channels)
        self.norm = style.norm(channels)
        self.qkv = style.conv(channels, 3 * channels, 1)
        self.out = style.zero_conv(channels, channels, 1)
        self.cross = CrossAttention(channels, style) if style.context_channels else None

    def forward(self, h: Tensor, tokens: Tokens | None = None) -> Tensor:
        batch, channels, *_ = h.shape
        qkv = self.qkv(self.norm(h)).reshape(batch, 3, self.heads, channels // self.heads, -1)
        q, k, v = qkv.mT.contiguous().unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        h = self.style.add(h, self.out(attended.mT.reshape(h.shape).contiguous()))
        return h if self.cross is None else self.cross(h, tokens)


@final
class CrossAttention(nn.Module):
    """Attention of all places of a sample to tokens."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.style = style
        self.heads = style.heads(channels)
        self.norm = style.norm(channels)
        self.q = style.conv(channels, channels, 1)
        self.kv = style.drawn(nn.Linear(style.context_channels, 2 * channels))
        self.out = style.zero_conv(channels, channels, 1)

    def forward(self, h: Tensor, tokens: Tokens | None) -> Tensor:
        assert tokens is not None
        q = self.q(self.norm(h)).reshape(h.shape[0], self.heads, h.shape[1] // self.heads, -1).mT.contiguous()
        attended = attend_to_tokens(q, self.kv(tokens.values), tokens.mask)
        return self.style.add(h, self.out(attended.mT.reshape(h.shape).contiguous()))


def attend_to_tokens(q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries `(B, heads, N, d)` to the keys and values `(B, L, 2 heads d)` that a mask `(B, L)` keeps."""
    k, v = kv.unflatten(2, (2, q.shape[1], q.shape[3])).permute(2, 0, 3, 1, 4).unbind(0)
    show_weights(q, k, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])


@final
class StridedConv(nn.Module):
    """A convolution that halves the size; with a kernel, of what it has filtered.

    Without one, zeros are added at the end of each axis only, as DDPM does. (With zeros at both ends it is a plain
    convolution of stride 2.)
    """

    def __init__(self, c_in: int, c_out: int, style: Style) -> None:
        super().__init__()
        self.style = style
        self.resampler = style.resampler() if style.fir else None
        self.conv = style.conv(c_in, c_out, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        x = even(x)
        if self.resampler is not None:
            return self.conv(self.resampler.smooth(x))
        return self.conv(F.pad(x, (0, 1) * (x.ndim - 2)))


@final
class UpConv(nn.Module):
    """A convolution at twice the size of its input, which is doubled by filtering."""

    def __init__(self, c_in: int, c_out: int, style: Style) -> None:
        super().__init__()
        self.style = style
        self.resampler = style.resampler()
        self.conv = style.conv(c_in, c_out, 3, padding=0)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return cropped(self.conv(self.resampler.spread(x, self.resampler.taps // 2 - 2)), size)

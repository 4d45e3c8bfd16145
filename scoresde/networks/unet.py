"""A small U-Net for images of any size."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.embedding import Conditioning, LabelledNetwork


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with up to 8 groups of at least two channels.

    A group of one channel would remove the channel's mean, and with it the bias of the layer before.
    """
    groups = next((g for g in (8, 4, 2) if channels % g == 0 and channels > g), 1)
    return nn.GroupNorm(num_groups=groups, num_channels=channels)


def num_heads(channels: int) -> int:
    """The heads of attention: about one per 32 channels."""
    return next(h for h in range(max(1, channels // 32), 0, -1) if channels % h == 0)


class _ResBlock(nn.Module):
    """A residual block of two convolutions; the embedding scales and shifts the features between them."""

    def __init__(self, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        self.norm_in = norm(c_in)
        self.norm_out = norm(c_out)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * c_out)
        self.conv_out = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        inner = self.conv_in(F.silu(self.norm_in(h)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        inner = self.conv_out(F.silu(self.norm_out(inner) * (1 + scale) + shift))
        return self.skip(h) + inner


class _Attention(nn.Module):
    """Self-attention over the positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = num_heads(channels)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        q, k, v = (
            self.qkv(self.norm(h)).reshape(batch, 3, self.heads, channels // self.heads, -1).mT.contiguous().unbind(1)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return h + self.out(attended.mT.reshape(batch, channels, height, width).contiguous())


class Encoder(nn.Module):
    """The way down of a U-Net: residual blocks down to the coarsest level, and attention there.

    Args:
        num_classes, label_dropout: of the labels that it is conditioned on; the others are those of `UNet`.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        multipliers: tuple[int, ...],
        num_blocks: int,
        num_classes: int = 0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        cls = type(self).__name__
        for name, value in {"channels_in": channels_in, "channels": channels, "num_blocks": num_blocks}.items():
            require(value >= 1, f"{name}={value} of {cls}: need at least 1")
        require(
            len(multipliers) >= 1 and all(isinstance(m, int) and m >= 1 for m in multipliers),
            f"multipliers={multipliers} of {cls}: need whole numbers of at least 1, as in (1, 2)",
        )
        self.channels_in = channels_in
        self.channels = channels
        self.multipliers = tuple(multipliers)
        self.num_blocks = num_blocks
        width = 4 * channels
        self.conditioning = Conditioning(width, num_classes, label_dropout)
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.down = nn.ModuleList()
        c = channels
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            for _ in range(num_blocks):
                self.down.append(_ResBlock(c, c := channels * multiplier, width))
        self.middle = nn.ModuleList([_ResBlock(c, c, width), _Attention(c), _ResBlock(c, c, width)])

    def widths(self) -> list[int]:
        """The channels of the features that `encode` gives, from the finest level to the coarsest."""
        found = [self.channels]
        for level, multiplier in enumerate(self.multipliers):
            found += found[-1:] if level else []
            found += [self.channels * multiplier] * self.num_blocks
        return found

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features of images at the coarsest level, and those after each layer on the way."""
        h = self.first(x)
        passed = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, _ResBlock) else layer(h)
            passed.append(h)
        for layer in self.middle:
            h = layer(h, embedding) if isinstance(layer, _ResBlock) else layer(h)
        return h, passed


@final
class UNet(Encoder, LabelledNetwork):
    """Residual blocks down to the coarsest level, attention there, and up again with skip connections.

    Args:
        channels_in: channels of an image; x has shape `(B, channels_in, H, W)`.
        channels: features at the finest level.
        multipliers: features of each level as multiples of `channels`; each further level halves the image.
        num_blocks: residual blocks a level on the way down; one more on the way up.
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the labels that training hides. Above 0 the network also works without labels: cond may
            be None, or hold num_classes, which stands for "none".
        learned_variance: give a second output, from which the variance of a reverse step follows.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__(channels_in, channels, multipliers, num_blocks, num_classes, label_dropout)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.learned_variance = learned_variance
        self.cond_dropout = label_dropout
        self.up = nn.ModuleList()
        width = 4 * channels
        skips = self.widths()
        c = skips[-1]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_blocks + 1):
                self.up.append(_ResBlock(c + skips.pop(), c := channels * multiplier, width))
            if level:
                self.up.append(nn.Conv2d(c, c, 3, padding=1))
        self.norm = norm(c)
        self.last = nn.Conv2d(c, 2 * channels_in if learned_variance else channels_in, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        embedding = self.conditioning(c_noise, cond)
        h, skips = self.encode(x, embedding)
        for layer in self.up:
            if isinstance(layer, _ResBlock):
                h = layer(torch.cat([h, skips.pop()], 1), embedding)
            else:  # back to the finer level, whose size may have been odd
                h = layer(F.interpolate(h, size=skips[-1].shape[2:], mode="nearest"))
        return self.last(F.silu(self.norm(h)))

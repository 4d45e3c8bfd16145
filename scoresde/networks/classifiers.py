"""Networks that classify noisy samples: the halves of the score networks that look, without those that paint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.networks.embedding import Conditioning
from scoresde.networks.layers import Style, check_levels
from scoresde.networks.mlp import Trunk
from scoresde.networks.unet import Encoder


class ClassifierNetwork(nn.Module, ABC):
    """A network from noisy samples to logits.

    Any `torch.nn.Module` with this `forward` can be used. If its class is registered (`scoresde.register`), a file can
    describe it.

    Attributes:
        num_classes: classes that it tells apart.
    """

    num_classes: int

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """The logits `(B, num_classes)`.

        Args:
            x: the scaled state `(B, *shape)`, in the network's type.
            c_noise: the noise label `(B,)`; float32, or float64 for a float64 network.
        """


class _AttentionPool(nn.Module):
    """Attention of the mean of an image's features to all positions, and to itself; `(B, channels)`.

    Positions have no embedding, so an image can have any size; the features know their place from the borders.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = Style().heads(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        tokens = h.flatten(2).mT
        mean = tokens.mean(1, keepdim=True)
        q = self._by_head(self.q(mean))
        k, v = self.kv(torch.cat([mean, tokens], 1)).chunk(2, 2)
        attended = F.scaled_dot_product_attention(q, self._by_head(k), self._by_head(v))
        return self.out(attended.flatten(1))

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2).contiguous()


@final
class UNetClassifier(Encoder, ClassifierNetwork):
    """The way down of a U-Net, pooled by attention (Dhariwal and Nichol 2021, appendix H).

    Args:
        channels_in: channels of a sample; x has shape `(B, channels_in, *sizes)`, of any sizes.
        num_classes: classes that it tells apart.
        channels: features at the finest level.
        multipliers: features of each level as multiples of `channels`; each further level halves the image.
        num_blocks: residual blocks a level.
        dims: 1 for series, 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        channels_in: int,
        num_classes: int,
        channels: int = 16,
        multipliers: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        dims: int = 2,
    ) -> None:
        check_levels("UNetClassifier", channels, multipliers, num_blocks)
        width = 4 * channels
        super().__init__(channels_in, channels, multipliers, num_blocks, Style(dims=dims), Conditioning(width), width)
        self.dims = dims
        _check_classes(num_classes)
        self.num_classes = num_classes
        c = self.widths()[-1]
        self.norm = self.style.norm(c)
        self.pool = _AttentionPool(c)
        self.last = _last(c, num_classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        h, _ = self.encode(x, self.conditioning(c_noise, None))
        return self.last(self.pool(F.silu(self.norm(h))))


@final
class MLPClassifier(Trunk, ClassifierNetwork):
    """The blocks of an MLP and a linear layer; x has shape `(B, dim)`.

    Args:
        dim: size of a sample.
        num_classes: classes that it tells apart.
        width: number of features.
        depth: number of blocks.
    """

    def __init__(self, dim: int, num_classes: int, width: int = 128, depth: int = 3) -> None:
        super().__init__(dim, width, depth)
        _check_classes(num_classes)
        self.num_classes = num_classes
        self.last = _last(width, num_classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.last(self.features(x, self.conditioning(c_noise, None)))


def _check_classes(num_classes: int) -> None:
    require(
        isinstance(num_classes, int) and num_classes >= 2,
        f"num_classes={num_classes}: a classifier tells at least two classes apart",
    )


def _last(width: int, num_classes: int) -> nn.Linear:
    """The layer of the logits, which begin as 0: all classes equally likely."""
    layer = nn.Linear(width, num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

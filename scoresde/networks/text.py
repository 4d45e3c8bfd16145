"""Networks that read: a transformer over words, and what it is trained beside."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import UsageError, require
from scoresde.networks.layers import Style, check_samples

FIRST_SCALE = 1 / 0.07  # of the similarities, as training begins (Radford et al. 2021, section 2.5)
LARGEST_SCALE = 100.0  # Radford et al. 2021, section 2.5
POOL = 2  # places along each axis of which the image encoder keeps the mean, so that it can tell left from right
POOLING = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class Read(NamedTuple):
    """What a network makes of texts.

    Attributes:
        states: a vector for each word, `(B, L, width)`; 0 at places that only pad.
        pooled: their mean `(B, width)`; 0 for a text without words.
    """

    states: Tensor
    pooled: Tensor


class WordBlock(nn.Module):
    """Attention between words, and two linear layers on each word, beside a skip connection; both begin as 0."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _zero_linear(width, width)
        self.norm_inner = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = _zero_linear(4 * width, width)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        """Words `(B, L, width)` after they have looked at each other.

        Args:
            h: the words.
            bias: added to the logits of attention, as `nearness` gives it.
        """
        q, k, v = self.qkv(self.norm(h)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).transpose(1, 2).flatten(2)
        h = h + F.dropout(self.out(attended), self.dropout, self.training)
        inner = self.outer(F.gelu(self.inner(self.norm_inner(h))))
        return h + F.dropout(inner, self.dropout, self.training)


def nearness(mask: Tensor, num_heads: int, apart: int = 0) -> Tensor:
    """What attention between words adds to its logits, `(B, num_heads, L, L)`: -4^-h |i - j| for words i and j.

    The first heads look at the words nearby, which say what a word means, as in "leaning left, on the right"; the last
    look everywhere (Press et al. 2022, with steeper slopes, as captions are short). What only pads is not seen, but by
    itself.

    Args:
        mask: `(B, L)`, True for words that count.
        num_heads: heads h = 0, 1, ...
        apart: so many at the beginning are no words, and are near to all.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    distance = (places[:, None] - places).abs().float()
    distance[:apart] = 0
    distance[:, :apart] = 0
    slopes = 4.0 ** -torch.arange(num_heads, device=mask.device)
    hidden = ~mask[:, None, None, :] & (places[:, None] != places)
    return (-slopes[:, None, None] * distance).masked_fill(hidden, -math.inf)


def _zero_linear(size_in: int, size_out: int) -> nn.Linear:
    layer = nn.Linear(size_in, size_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@final
class TextTransformer(nn.Module):
    """A transformer over the words of a text, in which each word sees all others (Vaswani et al. 2017).

    Each part normalises what it sees, and adds to it.

    Args:
        words: the vocabulary, `scoresde.text.Vocabulary.words`: number 0 only pads, and 1 stands for words that are not
            in it, whose embedding begins as 0: where training meets none, they say nothing but that there is a word.
        width: size of the vector of a word.
        depth: blocks.
        num_heads: heads of attention; they divide `width`.
        max_length: words of the longest text.
        dropout: share of the features that training sets to zero behind each part of a block.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        max_length: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(
            len(words) >= 2, f"words={words!r} of TextTransformer: need a vocabulary, Vocabulary.of(captions).words"
        )
        for name, value in {"depth": depth, "num_heads": num_heads, "max_length": max_length}.items():
            require(value >= 1, f"{name}={value} of TextTransformer: need at least 1")
        require(
            width >= 1 and width % num_heads == 0,
            f"width={width} of TextTransformer: need a multiple of num_heads={num_heads}",
        )
        require(0 <= dropout < 1, f"dropout={dropout} of TextTransformer: need 0 <= dropout < 1")
        self.words = tuple(words)
        self.width = width
        self.depth = depth
        self.num_heads = num_heads
        self.max_length = max_length
        self.dropout = dropout
        self.word = nn.Embedding(len(words), width)
        self.word.weight.data[1] = 0
        self.place = nn.Parameter(0.1 * torch.randn(max_length, width))
        self.blocks = nn.ModuleList(WordBlock(width, num_heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor) -> Read:
        """Reads texts.

        Args:
            ids: numbers of words `(B, L)`, L at most `max_length`.
            mask: `(B, L)`, False at places that only pad; what stands there changes nothing.
        """
        if ids.shape[1] > self.max_length:
            raise UsageError(f"ids of shape {tuple(ids.shape)}: this network takes {self.max_length} words; cut them")
        bias = nearness(mask, self.num_heads)
        h = self.word(ids) + self.place[: ids.shape[1]]
        for block in self.blocks:
            h = block(h, bias)
        kept = mask[..., None].to(h.dtype)
        states = self.norm(h) * kept
        return Read(states, states.sum(1) / kept.sum(1).clamp(min=1))


@final
class ImageEncoder(nn.Module):
    """Convolutions that halve the sizes of an image, series or volume, and the means over its halves along each axis.

    Args:
        channels_in: channels of a sample; x has shape `(B, channels_in, *sizes)`, of any sizes.
        width: size of what it returns.
        channels: features at the finest level; each further level has twice as many.
        depth: levels.
        dims: 1 for series, 2 for images, 3 for volumes.
    """

    def __init__(self, channels_in: int, width: int = 128, channels: int = 16, depth: int = 3, dims: int = 2) -> None:
        super().__init__()
        for name, value in {"channels_in": channels_in, "width": width, "channels": channels, "depth": depth}.items():
            require(value >= 1, f"{name}={value} of ImageEncoder: need at least 1")
        style = Style(dims=dims)
        self.channels_in = channels_in
        self.width = width
        self.channels = channels
        self.depth = depth
        self.dims = dims
        self.first = style.conv(channels_in, channels)
        sizes = [channels * 2**level for level in range(depth)]
        self.norms = nn.ModuleList(style.norm(c) for c in sizes)
        self.halving = nn.ModuleList(style.conv(c, 2 * c, stride=2) for c in sizes)
        self.norm = style.norm(2 * sizes[-1])
        self.last = nn.Linear(2 * sizes[-1] * POOL**dims, width)

    def forward(self, x: Tensor) -> Tensor:
        """A vector for each sample, `(B, width)`."""
        check_samples(x, self.channels_in, self.dims)
        h = self.first(x)
        for norm, halve in zip(self.norms, self.halving, strict=True):
            h = halve(F.silu(norm(h)))
        return self.last(POOLING[self.dims](F.silu(self.norm(h)), POOL).flatten(1))


class Embedded(NamedTuple):
    """Samples and texts in one space: vectors of length 1, `(B, size)` each, and the scale of their similarities."""

    images: Tensor
    texts: Tensor
    scale: Tensor


@final
class ContrastiveNetwork(nn.Module):
    """A text encoder and an image encoder whose outputs are brought to one space (Radford et al. 2021, figure 3).

    Args:
        text: reads the captions.
        image: sees the samples.
        size: of a vector in that space.
    """

    def __init__(self, text: TextTransformer, image: ImageEncoder, size: int = 64) -> None:
        super().__init__()
        require(size >= 1, f"size={size} of ContrastiveNetwork: need at least 1")
        self.text = text
        self.image = image
        self.size = size
        self.from_text = nn.Linear(text.width, size, bias=False)
        self.from_image = nn.Linear(image.width, size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, x: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """Samples `(B, channels, *sizes)` and their captions in one space; arguments as of the two encoders."""
        images = F.normalize(self.from_image(self.image(x)), dim=1)
        texts = F.normalize(self.from_text(self.text(ids, mask).pooled), dim=1)
        return Embedded(images, texts, self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp())

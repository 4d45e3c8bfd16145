"""A U-Net whose layers preserve the magnitudes of features, weights and updates (Karras et al. 2024, configuration G).

Every weight vector has unit norm, and every operation maps features of unit variance to features of unit variance if
they are uncorrelated. So there is no normalisation over groups and no bias, and the learning rate alone says how fast
weights turn. Written from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.conditions import Conditions, Takes
from scoresde.networks.embedding import KeepsFloat, LabelledNetwork
from scoresde.networks.layers import check_levels, check_samples
from scoresde.networks.resampling import CONVOLVE, Resampler

SILU_SCALE = 0.596  # root mean square of silu(x) for x ~ N(0, 1): Karras et al. 2024, equation 81
BALANCE = 0.3  # weight of what a block adds: table 6
CLIP = 256.0  # largest value of a feature: appendix B
EPS = 1e-4  # smallest root mean square that is divided by


def unit(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with a mean square of 1 over some axes (equation 47)."""
    norm = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (norm / math.sqrt(math.prod(x.shape[dim] for dim in dims))).clamp_min(EPS).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) with the magnitude of x (equation 81)."""
    return F.silu(x) / SILU_SCALE


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (equation 88)."""
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    """a and b behind each other, scaled so that both count equally and the magnitude is kept (equation 103)."""
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / 2)
    return torch.cat([a * (scale / math.sqrt(num_a)), b * (scale / math.sqrt(num_b))], 1)


@final
class MPConv(nn.Module):
    """A convolution, or with `dims` = 0 a linear map, with rows of unit norm and without bias (algorithm 1).

    In training, the weights themselves are brought to unit norm before each use, so that their growth does not lower
    the learning rate that is in effect.
    """

    def __init__(self, c_in: int, c_out: int, dims: int = 0, size: int = 1) -> None:
        super().__init__()
        self.dims = dims
        self.weight = nn.Parameter(torch.randn(c_out, c_in, *[size] * dims))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        weight: Tensor = self.weight
        rest = range(1, weight.ndim)
        if self.training and torch.is_grad_enabled():
            weight.data.copy_(unit(weight.data, rest))  # of `data`: a graph that holds the weight stays valid
        weight = (unit(weight, rest) * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
        if self.dims == 0:
            return F.linear(x, weight)
        return CONVOLVE[self.dims](x, weight, padding=weight.shape[-1] // 2)


@final
class MPConditioning(KeepsFloat, Conditions):
    """Embeds the noise label c_noise `(B,)`, labels, vectors and the noise of images: `(B, width)` of unit variance.

    Vectors should have unit variance, as images should.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, width: int, takes: Takes) -> None:
        super().__init__(takes)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))
        self.noise = MPConv(channels, width)
        self.label = MPConv(self.num_labels, width) if takes.num_classes else None
        self.vector = MPConv(self.vector_size, width) if takes.vector_channels else None
        self.image = MPConv(channels, width) if takes.image_channels else None

    def forward(self, c_noise: Tensor, cond: Condition) -> Tensor:
        dtype = self.noise.weight.dtype
        embedding = self.noise(self._features(c_noise).to(dtype))
        labels = self.labels(c_noise, cond)
        if self.label is not None and labels is not None:
            one_hot = F.one_hot(labels, self.num_labels).to(dtype)
            embedding = mp_sum(embedding, self.label(one_hot * math.sqrt(self.num_labels)))
        vectors = self.vectors(c_noise, cond)
        if self.vector is not None and vectors is not None:
            embedding = mp_sum(embedding, self.vector(vectors.to(dtype)))
        if self.image is not None:
            embedding = mp_sum(embedding, self.image(self._features(self.image_noise(c_noise, cond)).to(dtype)))
        return mp_silu(embedding)

    def _features(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self.frequencies.to(c_noise.dtype) + self.phases.to(c_noise.dtype)
        return math.sqrt(2) * phase.cos()


@final
class _Block(nn.Module):
    """Two convolutions beside a skip connection, whose features are scaled by the embedding; attention behind them."""

    def __init__(
        self, c_in: int, c_out: int, width: int, net: MPUNet, encodes: bool, resampling: str = "", attends: bool = False
    ) -> None:
        super().__init__()
        dims = net.dims
        self.encodes = encodes
        self.resampling = resampling
        self.dropout = net.dropout
        self.heads = max(1, c_out // net.head_channels) if attends else 0
        require(
            self.heads == 0 or c_out % self.heads == 0,
            f"head_channels={net.head_channels}: does not divide the {c_out} channels of a level with attention",
        )
        self.resampler = Resampler(dims)
        self.first = MPConv(c_out if encodes else c_in, c_out, dims, 3)
        self.modulation = MPConv(width, c_out)
        self.gain = nn.Parameter(torch.zeros(()))
        self.second = MPConv(c_out, c_out, dims, 3)
        self.skip = MPConv(c_in, c_out, dims) if c_in != c_out else nn.Identity()
        self.qkv = MPConv(c_out, 3 * c_out, dims) if attends else None
        self.out = MPConv(c_out, c_out, dims) if attends else None

    def forward(self, h: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        if self.resampling:
            h = self.resampler.down(h) if self.resampling == "down" else self.resampler.up(h, size)
        if self.encodes:
            h = unit(self.skip(h), [1])
        inner = self.first(mp_silu(h))
        scale = self.modulation(embedding, self.gain) + 1
        inner = mp_silu(inner * scale.view(*scale.shape, *[1] * (h.ndim - 2)))
        inner = self.second(F.dropout(inner, self.dropout, self.training))
        h = mp_sum(h if self.encodes else self.skip(h), inner, BALANCE)
        if self.qkv is not None and self.out is not None:
            h = mp_sum(h, self.out(self._attended(self.qkv(h), h.shape)), BALANCE)
        return h.clamp(-CLIP, CLIP)

    def _attended(self, qkv: Tensor, shape: torch.Size) -> Tensor:
        """Attention over all places, with queries, keys and values of unit variance (section 4.5)."""
        parts = qkv.reshape(qkv.shape[0], 3, self.heads, shape[1] // self.heads, -1)
        q, k, v = unit(parts, [3]).mT.contiguous().unbind(1)
        return F.scaled_dot_product_attention(q, k, v).mT.reshape(shape).contiguous()


@final
class MPUNet(LabelledNetwork):
    """The magnitude-preserving U-Net of Karras et al. 2024.

    It is meant for the default noise label and an input of unit variance. Train it with a learning rate of 1e-2 to 3e-2
    and no weight decay; the paper's falls as 1 / sqrt(step).

    Args:
        head_channels: channels of a head of attention; they divide those of the levels with attention.
        channels_in, channels, and all others: as of `UNet`.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int = 32,
        multipliers: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        learned_variance: bool = False,
        *,
        dims: int = 2,
        attention_levels: tuple[int, ...] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
        vector_channels: int = 0,
        image_channels: int = 0,
        keeps_image: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_levels("MPUNet", channels, multipliers, num_blocks, attention_levels)
        for name, value in {"channels_in": channels_in, "head_channels": head_channels}.items():
            require(value >= 1, f"{name}={value} of MPUNet: need at least 1")
        require(dims in (1, 2, 3), f"dims={dims} of MPUNet: need 1 for series, 2 for images or 3 for volumes")
        require(0 <= dropout < 1, f"dropout={dropout} of MPUNet: need 0 <= dropout < 1")
        self.channels_in = channels_in
        self.channels = channels
        self.multipliers = tuple(multipliers)
        self.num_blocks = num_blocks
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.learned_variance = learned_variance
        self.dims = dims
        self.attention_levels = tuple(attention_levels)
        self.head_channels = head_channels
        self.dropout = dropout
        self.vector_channels = vector_channels
        self.image_channels = image_channels
        self.keeps_image = keeps_image
        self.checkpointing = checkpointing
        self.cond_dropout = label_dropout
        widths = [channels * multiplier for multiplier in multipliers]
        width = max(widths)
        takes = Takes(
            num_classes,
            label_dropout,
            vector_channels=vector_channels,
            image_channels=image_channels,
            keeps_image=keeps_image,
        )
        self.conditioning = MPConditioning(widths[0], width, takes)  # type: ignore[assignment]
        self.first = MPConv(channels_in + image_channels + 1, widths[0], dims, 3)
        self.down = nn.ModuleList()
        skips = [c := widths[0]]
        for level, c_out in enumerate(widths):
            if level:
                self.down.append(_Block(c, c, width, self, True, "down"))
                skips.append(c)
            for _ in range(num_blocks):
                self.down.append(_Block(c, c := c_out, width, self, True, attends=level in self.attention_levels))
                skips.append(c)
        self.middle = nn.ModuleList([_Block(c, c, width, self, False, attends=True), _Block(c, c, width, self, False)])
        self.up = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                attends = level in self.attention_levels
                self.up.append(_Block(c + skips.pop(), c := c_out, width, self, False, attends=attends))
            if level:
                self.up.append(_Block(c, c, width, self, False, "up"))
        self.last = MPConv(c, 2 * channels_in if learned_variance else channels_in, dims, 3)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        check_samples(x, self.channels_in, self.dims)
        embedding = self.conditioning(c_noise, cond)
        x = self.conditioning.beside(x, cond)
        h = self.first(torch.cat([x, torch.ones_like(x[:, :1])], 1))  # in place of biases
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, embedding)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, embedding)
        for layer in self.up:
            if layer.resampling:
                h = self._run(layer, h, embedding, skips[-1].shape[2:])
            else:
                h = self._run(layer, mp_cat(h, skips.pop()), embedding)
        return self.last(h, self.gain)

    def _run(self, layer: nn.Module, h: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, h, embedding, size, use_reentrant=False)
        return layer(h, embedding, size)

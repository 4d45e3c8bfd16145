"""A transformer over patches: DiT with adaLN-Zero (Peebles and Xie 2023, section 3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.conditions import Takes
from scoresde.networks.embedding import Conditioning, Features, LabelledNetwork
from scoresde.networks.layers import Tokens, attend_to_tokens, check_samples, zeroed

FREQUENCIES = 256  # features of the noise label (Peebles and Xie's code)


class _Block(nn.Module):
    """Attention between patches, to tokens if there are any, and two linear layers on each patch.

    The embedding e scales and shifts what each part sees, and scales what it adds, which begins as 0:
    h + gate(e) f((1 + scale(e)) norm(h) + shift(e)).
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, dropout: float, context_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = _linear(width, 3 * width)
        self.out = _linear(width, width)
        hidden = round(mlp_ratio * width)
        self.inner = _linear(width, hidden)
        self.outer = _linear(hidden, width)
        if context_channels:
            self.query = _linear(width, width)
            self.context = _linear(context_channels, 2 * width)
            self.context_out = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, embedding: Tensor, tokens: Tokens | None) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)[:, None].chunk(6, 2)
        h = h + gate * self._drop(self._attended(modulated(h, shift, scale)))
        if tokens is not None:
            h = h + self._drop(self._seen(h, tokens))
        inner = F.gelu(self.inner(modulated(h, shift_mlp, scale_mlp)), approximate="tanh")
        return h + gate_mlp * self._drop(self.outer(inner))

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)

    def _attended(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _seen(self, h: Tensor, tokens: Tokens) -> Tensor:
        q = self.query(F.layer_norm(h, h.shape[-1:], eps=1e-6)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attended = attend_to_tokens(q, self.context(tokens.values), tokens.mask)
        return self.context_out(attended.transpose(1, 2).flatten(2))


def _linear(size_in: int, size_out: int) -> nn.Linear:
    """A linear layer with Glorot and Bengio's uniform weights and no biases, as DiT begins with."""
    layer = nn.Linear(size_in, size_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _draw_small(conditioning: Conditioning) -> None:
    """Draws the embeddings of noise and labels with a deviation of 0.02 and without biases, as DiT begins with."""
    for name, parameter in conditioning.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) norm(h) + shift."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


@final
class DiT(LabelledNetwork):
    """A transformer over the patches of a sample, conditioned by adaLN-Zero.

    Args:
        channels_in: channels of a sample; x has shape `(B, channels_in, *sizes)`, with as many sizes as `dims`.
        patch_size: side of a patch; it divides every size.
        width: features of a patch.
        depth: blocks.
        num_heads: heads of attention; they divide `width`.
        mlp_ratio: features between the two linear layers of a block, as a multiple of `width`.
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the conditions that training hides. Above 0 the network also works without: cond may be
            None, or hold the label num_classes, which stands for "none".
        learned_variance: give a second output, from which the variance of a reverse step follows.
        dims: 1 for series, 2 for images, 3 for volumes.
        noise_embedding: of the noise label: "octaves" for the default label, "positional" for labels up to 1000.
        frequency_shift: of "positional": 0 in DiT's code, 1 in diffusers'.
        dropout: share of the features that training sets to zero behind each part of a block.
        context_channels: size of the tokens that the patches also attend to; 0 for none. The condition is then a dict,
            as `Conditions` says.
        vector_channels: size of a vector to condition on; 0 for none.
        image_channels: channels of an image to condition on, which the network sees behind those of x; 0 for none.
        keeps_image: never hide the image, as upsamplers do.
        context_depth: blocks in which the tokens look at each other first, as of `Conditioning`.
        checkpointing: in training, compute the inner values of blocks twice rather than store them.
    """

    channels_in: int
    patch_size: int
    width: int
    depth: int
    learned_variance: bool
    dims: int
    checkpointing: bool

    def __init__(
        self,
        channels_in: int,
        patch_size: int = 2,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        learned_variance: bool = False,
        *,
        dims: int = 2,
        noise_embedding: str = "octaves",
        frequency_shift: int = 0,
        dropout: float = 0.0,
        context_channels: int = 0,
        vector_channels: int = 0,
        image_channels: int = 0,
        keeps_image: bool = False,
        context_depth: int = 0,
        checkpointing: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        counts = {"channels_in": channels_in, "patch_size": patch_size, "depth": depth, "num_heads": num_heads}
        for name, value in counts.items():
            require(value >= 1, f"{name}={value} of DiT: need at least 1")
        require(dims in (1, 2, 3), f"dims={dims} of DiT: need 1 for series, 2 for images or 3 for volumes")
        near = sorted(
            {max(num_heads, width // num_heads * num_heads), max(num_heads, -(-width // num_heads) * num_heads)}
        )
        require(
            width >= 1 and width % num_heads == 0,
            f"width={width} of DiT: need a multiple of num_heads={num_heads}, such as {' or '.join(map(str, near))}",
        )
        require(width >= 2 * dims, f"width={width} of DiT: need at least 2 features for each of {dims} axes")
        require(round(mlp_ratio * width) >= 1, f"mlp_ratio={mlp_ratio} of DiT: must be positive, such as 4")
        require(0 <= dropout < 1, f"dropout={dropout} of DiT: need 0 <= dropout < 1")
        for name, value in arguments.items():  # a file describes the network by its arguments
            setattr(self, name, value)
        self.cond_dropout = label_dropout
        features = Features(noise_embedding, FREQUENCIES, frequency_shift)
        self.conditioning = Conditioning(width, Takes.of(arguments), features)
        _draw_small(self.conditioning)
        self.first = _linear((channels_in + image_channels) * patch_size**dims, width)
        self.blocks = nn.ModuleList(
            _Block(width, num_heads, mlp_ratio, dropout, context_channels) for _ in range(depth)
        )
        channels_out = 2 * channels_in if learned_variance else channels_in
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, channels_out * patch_size**dims))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        check_samples(x, self.channels_in, self.dims)
        tokens = self.conditioning.tokens(c_noise, cond)
        embedding = self.conditioning(c_noise, cond, tokens)
        grid = self.grid(x.shape[2:])
        x = self.conditioning.beside(x, cond)
        h = self.first(_patches(x, self.patch_size)) + _positions_like(tuple(grid), self.width, x.device, x.dtype)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, embedding, tokens, use_reentrant=False)
            else:
                h = block(h, embedding, tokens)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, 2)
        return _samples(self.last(modulated(h, shift, scale)), grid, self.patch_size)

    def grid(self, sizes: Sequence[int]) -> list[int]:
        """The number of patches along each axis of samples.

        Raises:
            UsageError: for sizes that the patches do not divide.
        """
        for size in sizes:
            near = sorted(
                {max(self.patch_size, size // self.patch_size * self.patch_size), size + -size % self.patch_size}
            )
            require(
                size % self.patch_size == 0,
                f"x of sizes {tuple(sizes)}: patch_size={self.patch_size} does not divide {size}; take another, or the "
                f"nearest size that it divides, {' or '.join(map(str, near))}",
            )
        return [size // self.patch_size for size in sizes]


def _patches(x: Tensor, side: int) -> Tensor:
    """Samples `(B, C, *sizes)` as patches `(B, N, C side^dims)`, the values of a channel in a row."""
    for axis in range(2, x.ndim):
        place = 2 * axis - 2
        x = x.unflatten(place, (x.shape[place] // side, side))
    dims = (x.ndim - 2) // 2
    order = [0, *range(2, 2 * dims + 2, 2), 1, *range(3, 2 * dims + 2, 2)]
    return x.permute(order).flatten(1 + dims).flatten(1, dims)


def _samples(patches: Tensor, grid: Sequence[int], side: int) -> Tensor:
    """Patches `(B, N, side^dims C)`, the channels of a value in a row, as samples `(B, C, *sizes)`."""
    dims = len(grid)
    x = patches.unflatten(2, (*[side] * dims, -1)).unflatten(1, tuple(grid))
    order = [0, 2 * dims + 1, *(part for axis in range(1, dims + 1) for part in (axis, axis + dims))]
    x = x.permute(order)
    for axis in range(dims):
        x = x.flatten(2 + axis, 3 + axis)
    return x


@functools.lru_cache(maxsize=16)
def _positions_like(grid: tuple[int, ...], width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return positions(grid, width).to(device, dtype)


def positions(grid: Sequence[int], width: int) -> Tensor:
    """The embedding of the places of a grid, `(N, width)`, float64: sines, then cosines, of each coordinate.

    Frequencies are 10000^(-k / n), as in the Transformer. The last coordinate comes first, as in DiT.
    """
    part = width // len(grid)
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(part // 2, dtype=torch.float64) / (part // 2))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    phases = [axis.reshape(-1, 1) * frequencies for axis in reversed(axes)]
    found = torch.cat([table for phase in phases for table in (phase.sin(), phase.cos())], 1)
    return F.pad(found, (0, width - found.shape[1]))

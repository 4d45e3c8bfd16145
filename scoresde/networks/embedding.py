"""Conditioning of a network on the noise, and on all that `Conditions` says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.base import Network
from scoresde.networks.conditions import Conditions, Takes
from scoresde.networks.layers import Tokens
from scoresde.networks.text import WordBlock, nearness

NOISE_EMBEDDINGS = ("octaves", "positional", "fourier")


class KeepsFloat(nn.Module):
    """A module whose buffers stay in float32 when it is brought to a shorter type: phases need their digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype.itemsize < 4:
                setattr(self, name, kept[name].to(buffer.device, torch.float32))
        return self


class Features(KeepsFloat):
    """Cosines and sines of the noise label c_noise `(B,)`, `(B, size)`; the phases are computed in its type.

    - "octaves": of pi/2 c_noise times 1/2 to 32. The default c_noise, log(sigma/alpha)/4, spans about [-2, 2].
    - "positional": of c_noise 10000^(-k / (n - shift)), k = 0 .. n - 1: Transformer's, for labels up to 1000.
    - "fourier": of 2 pi w c_noise, with w ~ N(0, scale^2) drawn once (Tancik et al. 2020), for log sigma.

    Args:
        kind: one of these.
        channels: 2n of "positional", n of "fourier".
        shift: of "positional": 0 in Dhariwal and Nichol's networks, 1 in DDPM's and Song et al.'s.
        scale: of "fourier".
    """

    frequencies: Tensor

    def __init__(self, kind: str, channels: int, shift: int = 0, scale: float = 16.0) -> None:
        super().__init__()
        require(kind in NOISE_EMBEDDINGS, f"noise_embedding={kind!r}: need {', '.join(NOISE_EMBEDDINGS)}")
        require(shift in (0, 1), f"frequency_shift={shift}: need 0 or 1")
        require(
            kind != "positional" or (channels % 2 == 0 and channels > 2 * shift),
            f"embedding_channels={channels}: positional embeddings need an even number above {2 * shift}",
        )
        require(
            kind != "fourier" or channels >= 1, f"embedding_channels={channels}: need at least 1, or 0 for `channels`"
        )
        self.kind = kind
        self.shift = shift
        self.size = {"octaves": 64, "positional": channels, "fourier": 2 * channels}[kind]
        if kind == "fourier":
            self.register_buffer("frequencies", torch.randn(channels) * scale)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise[:, None] * self._frequencies(c_noise)
        return torch.cat([phase.cos(), phase.sin()], 1)

    def _frequencies(self, like: Tensor) -> Tensor:
        if self.kind == "fourier":
            return self.frequencies.to(like.dtype) * (2 * math.pi)
        if self.kind == "octaves":
            return 2 ** torch.linspace(-1, 5, 32, device=like.device, dtype=like.dtype) * (math.pi / 2)
        half = self.size // 2
        exponents: Tensor = torch.arange(half, device=like.device, dtype=like.dtype) / (half - self.shift)
        return torch.exp(-math.log(10000.0) * exponents)


class Conditioning(Conditions):
    """Embeds the noise label c_noise `(B,)` and, if the network takes them, labels, vectors and the noise of images.

    The embedding is one vector `(B, width)`. A learned token stands beside those that are given, so that there is
    always one to attend to.

    Args:
        width: size of the embedding.
        takes: which conditions the network takes.
        features: of the noise label; "octaves" by default.
    """

    def __init__(
        self,
        width: int,
        takes: Takes = Takes(),  # noqa: B008  frozen
        features: Features | None = None,
    ) -> None:
        super().__init__(takes)
        context = takes.context_channels
        self.features = features or Features("octaves", 0)
        self.noise = nn.Linear(self.features.size, width)
        self.label = nn.Embedding(self.num_labels, width) if takes.num_classes else None
        self.mix = nn.Linear(width, width)
        self.token = nn.Parameter(torch.randn(context) * 0.02) if context else None
        self.heads = next((heads for heads in (4, 2) if context % heads == 0), 1)
        self.reading = nn.ModuleList(WordBlock(context, self.heads, 0.0) for _ in range(takes.context_depth))
        self.pool = nn.Linear(context, width) if takes.context_depth else None
        self.vector = nn.Linear(self.vector_size, width) if takes.vector_channels else None
        self.image_features = Features("octaves", 0) if takes.image_channels else None
        self.image = nn.Linear(self.image_features.size, width) if self.image_features is not None else None

    def forward(self, c_noise: Tensor, cond: Condition, tokens: Tokens | None = None) -> Tensor:
        """The embedding, after its last nonlinearity; others join before "octaves" are mixed, after the others are.

        Args:
            c_noise: the noise label `(B,)`.
            cond: the condition.
            tokens: what `tokens` gives for it.
        """
        embedding = self.noise(self.features(c_noise).to(self.noise.weight.dtype))
        others = self._others(c_noise, cond, tokens)
        if self.features.kind == "octaves" and others is not None:
            embedding = embedding + others
        embedding = self.mix(F.silu(embedding))
        if self.features.kind != "octaves" and others is not None:
            embedding = embedding + others
        return F.silu(embedding)

    def _others(self, c_noise: Tensor, cond: Condition, tokens: Tokens | None) -> Tensor | None:
        """The sum of the embeddings of the learned token, labels, vectors and the noise of images; None without."""
        dtype = self.noise.weight.dtype
        found = []
        labels = self.labels(c_noise, cond)
        if self.label is not None:
            found.append(self.label(labels))
        if self.pool is not None and tokens is not None:
            found.append(self.pool(tokens.values[:, 0]))
        vectors = self.vectors(c_noise, cond)
        if self.vector is not None and vectors is not None:
            found.append(self.vector(vectors.to(dtype)))
        if self.image is not None and self.image_features is not None:
            found.append(self.image(self.image_features(self.image_noise(c_noise, cond)).to(dtype)))
        return sum(found[1:], found[0]) if found else None

    def tokens(self, c_noise: Tensor, cond: Condition) -> Tokens | None:
        """What cross-attention looks at; None for a network without a context."""
        if self.token is None:
            return None
        own = self.token.expand(c_noise.shape[0], 1, -1)
        values = self.given(cond, "tokens")
        if values is None:
            return Tokens(self._read(own, None), None)
        mask = self.part(cond, "mask")
        mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        return Tokens(self._read(torch.cat([own, values.to(own.dtype)], 1), mask), mask)

    def _read(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens after they have looked at each other."""
        if not len(self.reading):
            return values
        kept = torch.ones_like(values[:, :, 0], dtype=torch.bool) if mask is None else mask
        bias = nearness(kept, self.heads, apart=1)
        for block in self.reading:
            values = block(values, bias)
        return values


class LabelledNetwork(Network):
    """A network whose conditions are those that its `conditioning` embeds.

    Attributes:
        conditioning: the embedding.
        num_classes: classes to condition on; 0 for none.
    """

    conditioning: Conditioning
    num_classes: int

    @final
    def check_cond(self, cond: Condition) -> None:
        self.conditioning.check_cond(cond)

    @final
    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return self.conditioning.null_cond(cond, hidden)

"""Conditioning of a network on the noise, on class labels and on tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.condition import Condition, describe
from scoresde.errors import UsageError, require
from scoresde.networks.base import Network
from scoresde.networks.layers import Tokens

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


class Conditions(nn.Module):
    """Which conditions a network takes: class labels `(B,)`, tokens, both, or none.

    A network with classes takes labels 0 .. num_classes - 1. A network with a context takes tokens: its condition is a
    dict with "tokens" `(B, L, context_channels)` and, if some of them only pad, "mask" `(B, L)`, True for those that
    count; and with "label", if it has classes too. With `label_dropout` > 0 the network also works without a condition:
    cond may be None, the label num_classes means "none", and so does a mask that is False everywhere.

    Args:
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the conditions that training hides.
        context_channels: size of a token; 0 for none.
    """

    def __init__(self, num_classes: int, label_dropout: float, context_channels: int = 0) -> None:
        super().__init__()
        require(
            isinstance(num_classes, int) and num_classes >= 0,
            f"num_classes={num_classes}: need a whole number, 0 for a network without classes",
        )
        require(0 <= label_dropout < 1, f"label_dropout={label_dropout}: need 0 <= label_dropout < 1")
        require(
            label_dropout == 0 or num_classes > 0 or context_channels > 0,
            f"label_dropout={label_dropout}: this network has no classes whose labels could be hidden; leave it at 0",
        )
        self.num_classes = num_classes
        self.context_channels = context_channels
        self.has_null = label_dropout > 0

    @property
    def num_labels(self) -> int:
        """The classes, and "none" if there is one."""
        return self.num_classes + (self.has_null if self.num_classes else 0)

    def labels(self, c_noise: Tensor, cond: Condition) -> Tensor | None:
        """The labels `(B,)` of a condition; None for a network without classes."""
        if not self.num_classes:
            if cond is not None and not self.context_channels:
                raise UsageError("cond: this network was made without classes; leave it out")
            return None
        if cond is None and self.has_null:
            return torch.full_like(c_noise, self.num_classes, dtype=torch.long)
        label = cond.get("label") if isinstance(cond, Mapping) else cond
        if not isinstance(label, Tensor):
            raise UsageError(f"cond: {describe(cond)}; this network takes labels 0..{self.num_classes - 1}")
        return label.long()

    def _need(self) -> str:
        """What a condition must be, for error messages."""
        labels = f"labels 0..{self.num_classes - 1}, one a sample"
        if self.has_null and self.num_classes:
            labels += f"; {self.num_classes} stands for none"
        if not self.context_channels:
            return f"need {labels}"
        tokens = f"'tokens' (B, L, {self.context_channels}) and, if some only pad, 'mask' (B, L) of booleans"
        return f"need a dict of {tokens}" + (f", and of 'label', {labels}" if self.num_classes else "")

    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` unless `cond` is what this network takes, or None if it needs nothing."""
        if self.num_classes == 0 and not self.context_channels:
            require(cond is None, "cond: this network was made without classes (num_classes=0); leave it out")
            return
        if cond is None and self.has_null:
            return
        if self.context_channels:
            self._check_tokens(cond)
        if self.num_classes:
            label = cond.get("label") if isinstance(cond, Mapping) and self.context_channels else cond
            self._check_labels(label)

    def _check_tokens(self, cond: Condition) -> None:
        known = {"tokens", "mask"} | ({"label"} if self.num_classes else set())
        fits = isinstance(cond, Mapping) and "tokens" in cond and cond.keys() <= known
        tokens = cond["tokens"] if fits and isinstance(cond, Mapping) else None
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[2] != self.context_channels:
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")
        mask = cond.get("mask", None) if isinstance(cond, Mapping) else None
        if mask is not None and not (
            isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == tokens.shape[:2]
        ):
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")

    def _check_labels(self, label: Condition) -> None:
        if not isinstance(label, Tensor) or label.is_floating_point() or label.ndim != 1:
            raise UsageError(f"cond: {describe(label)}; {self._need()}")
        low, high = (end.item() for end in label.long().aminmax())
        if low < 0 or high > self.num_classes - 1 + self.has_null:
            raise UsageError(f"cond: labels from {low} to {high}; {self._need()}")

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        """The condition with that of the `hidden` samples replaced by "none"."""
        require(
            self.has_null,
            "label_dropout=0: this network was trained with all labels and knows no label for none; train one with "
            "network.label_dropout=0.1",
        )
        if not self.context_channels:
            if not isinstance(cond, Tensor):
                return torch.full_like(hidden, self.num_classes, dtype=torch.long)
            return cond.long().masked_fill(hidden, self.num_classes)
        if not isinstance(cond, Mapping):
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")
        tokens, mask, label = (cond.get(part) for part in ("tokens", "mask", "label"))
        assert isinstance(tokens, Tensor)
        kept = mask if isinstance(mask, Tensor) else torch.ones_like(tokens[..., 0], dtype=torch.bool)
        nothing: dict[str, Condition] = {"tokens": tokens, "mask": kept & ~hidden[:, None]}
        if isinstance(label, Tensor):
            nothing["label"] = label.long().masked_fill(hidden, self.num_classes)
        return nothing


class Conditioning(Conditions):
    """Embeds the noise label c_noise `(B,)` and, for `num_classes` > 0, labels `(B,)`, into one vector `(B, width)`.

    A learned token stands beside those that are given, so that there is always one to attend to.

    Args:
        width: size of the embedding.
        features: of the noise label.
        num_classes, label_dropout, context_channels: what the network takes, as `Conditions` says.
    """

    def __init__(
        self,
        width: int,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        features: Features | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__(num_classes, label_dropout, context_channels)
        self.features = features or Features("octaves", 0)
        self.noise = nn.Linear(self.features.size, width)
        self.label = nn.Embedding(self.num_labels, width) if num_classes else None
        self.mix = nn.Linear(width, width)
        self.token = nn.Parameter(torch.randn(context_channels) * 0.02) if context_channels else None

    def forward(self, c_noise: Tensor, cond: Condition) -> Tensor:
        """The embedding, after its last nonlinearity; labels join before "octaves" are mixed, after the others are."""
        embedding = self.noise(self.features(c_noise).to(self.noise.weight.dtype))
        labels = self.labels(c_noise, cond)
        label = self.label(labels) if self.label is not None else None
        if self.features.kind == "octaves" and label is not None:
            embedding = embedding + label
        embedding = self.mix(F.silu(embedding))
        if self.features.kind != "octaves" and label is not None:
            embedding = embedding + label
        return F.silu(embedding)

    def tokens(self, c_noise: Tensor, cond: Condition) -> Tokens | None:
        """What cross-attention looks at; None for a network without a context."""
        if self.token is None:
            return None
        own = self.token.expand(c_noise.shape[0], 1, -1)
        if cond is None and self.has_null:
            return Tokens(own, None)
        values = cond.get("tokens") if isinstance(cond, Mapping) else None
        if not isinstance(values, Tensor):
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")
        mask = cond.get("mask") if isinstance(cond, Mapping) else None
        values = torch.cat([own, values.to(own.dtype)], 1)
        return Tokens(values, F.pad(mask, (1, 0), value=True) if isinstance(mask, Tensor) else None)


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

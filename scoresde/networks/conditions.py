"""Which conditions a network takes: labels, vectors, images and tokens; and what stands for none of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor, nn

from scoresde._shape import match_rank
from scoresde.condition import Condition, describe
from scoresde.errors import UsageError, require

WITH = {"vector_mask": "vector", "image_noise": "image", "mask": "tokens"}  # parts that say more of another one
BARE = ("label", "vector")  # kinds that may be given as a tensor to a network that asks for no other
LEAST_NOISE = 1e-3  # of an image: noise levels below it count as it


@final
@dataclass(frozen=True)
class Takes:
    """Which conditions a network takes.

    Attributes:
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the conditions that training hides.
        context_channels: size of a token; 0 for none.
        vector_channels: size of a vector; 0 for none.
        image_channels: channels of an image; 0 for none.
        keeps_image: never hide the image, as upsamplers do; guidance then is by the other parts alone. The image is
            not asked of data, as `scoresde.upsampling` makes it of the samples; what evaluates the network needs it.
        context_depth: blocks in which the tokens look at each other before the network attends to them; with them, the
            learned token joins the embedding. An encoder that was trained for other things need not say what belongs to
            what, as in "leaning left, on the right"; these blocks learn it from the samples.
    """

    num_classes: int = 0
    label_dropout: float = 0.0
    context_channels: int = 0
    vector_channels: int = 0
    image_channels: int = 0
    keeps_image: bool = False
    context_depth: int = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.num_classes, int) and self.num_classes >= 0,
            f"num_classes={self.num_classes}: need a whole number, 0 for a network without classes",
        )
        for name in ("context_channels", "vector_channels", "image_channels"):
            count = getattr(self, name)
            require(count >= 0, f"{name}={count}: need a whole number, 0 for a network without")
        require(0 <= self.label_dropout < 1, f"label_dropout={self.label_dropout}: need 0 <= label_dropout < 1")
        require(
            self.context_depth == 0 or (self.context_depth > 0 and self.context_channels > 0),
            f"context_depth={self.context_depth}: need 0 blocks or more, and 0 for a network without tokens",
        )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Takes:
        """What the arguments of a network say; it has those of these names."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})


class Conditions(nn.Module):
    """The conditions that a network takes, each of several kinds or none.

    A condition is a dict of these parts, one entry a sample:

        label        (B,) whole numbers 0 .. num_classes - 1
        vector       (B, vector_channels)
        image        (B, image_channels, *sizes) of the sizes of x, in the model's units: more channels of x
        image_noise  (B,) noise in the image, sigma / alpha, embedded as the noise of x is; 0 if it is left out
        tokens       (B, L, context_channels)
        mask         (B, L) booleans, False for tokens that only pad; all True if it is left out

    A network that takes labels alone, or vectors alone, also takes the tensor itself.

    With `label_dropout` > 0 the network also works without a condition, or without some of its parts: cond may be None,
    a part may be left out, and each has a value that means "none": the label num_classes, a mask that is False
    everywhere, and an image of zeros. A vector is hidden by False in "vector_mask" `(B,)`; the network then sees zeros
    and a flag, for which it learns a vector.

    Args:
        takes: which of them.
    """

    def __init__(self, takes: Takes) -> None:
        super().__init__()
        self.num_classes = takes.num_classes
        self.context_channels = takes.context_channels
        self.vector_channels = takes.vector_channels
        self.image_channels = takes.image_channels
        self.keeps_image = takes.keeps_image
        self.has_null = takes.label_dropout > 0
        sizes = {
            "label": takes.num_classes,
            "vector": takes.vector_channels,
            "image": takes.image_channels,
            "tokens": takes.context_channels,
        }
        self.kinds = tuple(kind for kind, size in sizes.items() if size)
        require(
            not self.has_null or len(self._asked) > 0,
            f"label_dropout={takes.label_dropout}: this network has no classes whose labels could be hidden; leave it "
            "at 0",
        )

    @property
    def num_labels(self) -> int:
        """The classes, and "none" if there is one."""
        return self.num_classes + (self.has_null if self.num_classes else 0)

    @property
    def vector_size(self) -> int:
        """The entries of a vector, and a flag for "none" if there is one."""
        return self.vector_channels + (self.has_null if self.vector_channels else 0)

    def labels(self, c_noise: Tensor, cond: Condition) -> Tensor | None:
        """The labels `(B,)` of a condition; None for a network without classes."""
        if not self.kinds and cond is not None:
            raise UsageError("cond: this network was made without classes; leave it out")
        if not self.num_classes:
            return None
        label = self.given(cond, "label")
        return torch.full_like(c_noise, self.num_classes, dtype=torch.long) if label is None else label.long()

    def vectors(self, c_noise: Tensor, cond: Condition) -> Tensor | None:
        """The vectors of a condition, and the flag of those that are hidden, `(B, vector_size)`; None without."""
        if not self.vector_channels:
            return None
        vector = self.given(cond, "vector")
        if vector is None:
            found = c_noise.new_zeros(len(c_noise), self.vector_size)
            found[:, -1] = self._flag
            return found
        vector = vector.to(c_noise.dtype)
        if not self.has_null:
            return vector
        kept = self.part(cond, "vector_mask")
        kept = torch.ones_like(c_noise, dtype=torch.bool) if kept is None else kept
        vector = vector.masked_fill(~kept[:, None], 0)
        return torch.cat([vector, (~kept)[:, None].to(vector.dtype) * self._flag], 1)

    @property
    def _flag(self) -> float:
        """What stands behind the zeros of a hidden vector; the mean square is that of a vector of unit variance."""
        return math.sqrt(self.vector_channels)

    def image_noise(self, c_noise: Tensor, cond: Condition) -> Tensor:
        """The label of the noise in a condition's image, `(B,)`: log(noise level)/4, as the default one of x."""
        level = self.part(cond, "image_noise")
        level = torch.zeros_like(c_noise) if level is None else level.to(c_noise.dtype)
        return level.clamp(min=LEAST_NOISE).log() / 4

    def beside(self, x: Tensor, cond: Condition) -> Tensor:
        """x `(B, C, *sizes)` with the image of a condition behind its channels, zeros for none."""
        if not self.image_channels:
            return x
        image = self.given(cond, "image")
        if image is None:
            return torch.cat([x, x.new_zeros(len(x), self.image_channels, *x.shape[2:])], 1)
        require(
            image.shape[2:] == x.shape[2:],
            f"cond['image'] of sizes {tuple(image.shape[2:])}: need those of the samples, {tuple(x.shape[2:])}",
        )
        return torch.cat([x, image.to(x.dtype)], 1)

    def given(self, cond: Condition, kind: str) -> Tensor | None:
        """A part of a condition; None for "none".

        Raises:
            UsageError: for a network that does not work without it.
        """
        found = self.part(cond, kind)
        if found is None and not self._hides(kind):
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")
        return found

    def _hides(self, kind: str) -> bool:
        """Whether the network works without a kind of condition."""
        return self.has_null and not (kind == "image" and self.keeps_image)

    def part(self, cond: Condition, name: str) -> Tensor | None:
        """A part of a condition; None if it is not there, or is no tensor."""
        parts = self._parts(cond)
        found = None if parts is None else parts.get(name)
        return found if isinstance(found, Tensor) else None

    @property
    def _asked(self) -> tuple[str, ...]:
        """The kinds that data must have."""
        return tuple(kind for kind in self.kinds if not (kind == "image" and self.keeps_image))

    def _need(self) -> str:
        """What a condition must be, for error messages."""
        labels = f"labels 0..{self.num_classes - 1}, one a sample"
        if self.has_null:
            labels += f"; {self.num_classes} stands for none"
        if self.kinds == ("label",):
            return f"need {labels}"
        if self.kinds == ("vector",):
            return f"need vectors (B, {self.vector_channels})"
        needs = {
            "tokens": f"'tokens' (B, L, {self.context_channels}) and, if some only pad, 'mask' (B, L) of booleans",
            "vector": f"'vector' (B, {self.vector_channels})",
            "image": f"'image' (B, {self.image_channels}, *sizes) and, if it is noisy, 'image_noise' (B,)",
            "label": f"'label', {labels}",
        }
        return "need a dict of " + ", and of ".join(need for kind, need in needs.items() if kind in self.kinds)

    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` unless `cond` is what this network takes, or None if it needs nothing."""
        if not self.kinds:
            require(cond is None, "cond: this network was made without classes (num_classes=0); leave it out")
            return
        wrong = self._wrong(cond)
        if wrong:
            raise UsageError(f"cond: {wrong}; {self._need()}")

    def _wrong(self, cond: Condition) -> str:
        """What is wrong with a condition; empty if nothing is."""
        parts = self._parts(cond)
        if parts is None or parts.keys() - self._known(parts):
            return describe(cond)
        for kind in self._asked:
            if kind not in parts and not self._hides(kind):
                return describe(cond) + (f", without {kind!r}" if parts else "")
        for name, part in parts.items():
            if not isinstance(part, Tensor) or not self._fits(name, part, parts):
                return describe(part) if part is cond else f"{name!r} is {describe(part)}"
        label = parts.get("label")
        if isinstance(label, Tensor):
            low, high = (end.item() for end in label.long().aminmax())
            if low < 0 or high > self.num_labels - 1:
                return f"labels from {low} to {high}"
        return ""

    def _parts(self, cond: Condition) -> Mapping[str, Condition] | None:
        """The parts of a condition by name; None for a condition that has none."""
        if cond is None:
            return {}
        asked = self._asked
        if isinstance(cond, Tensor) and len(asked) == 1 and asked[0] in BARE:
            return {asked[0]: cond}
        return cond if isinstance(cond, Mapping) else None

    def _known(self, parts: Mapping[str, Condition]) -> set[str]:
        """The parts that a condition with these may have."""
        more = {name for name, kind in WITH.items() if kind in self.kinds and kind in parts}
        return {*self.kinds, *more} - (set() if self.has_null else {"vector_mask"})

    def _fits(self, name: str, part: Tensor, parts: Mapping[str, Condition]) -> bool:
        """Whether a part has the type and the shape that it needs."""
        if name in ("mask", "vector_mask"):
            of = parts[WITH[name]]
            shape = of.shape[:2] if name == "mask" else of.shape[:1]  # type: ignore[union-attr]
            return part.dtype == torch.bool and part.shape == shape
        if name == "label":
            return not part.is_floating_point() and part.ndim == 1
        if name == "image_noise":
            return part.is_floating_point() and part.ndim == 1 and bool((part >= 0).all())
        size = {"vector": self.vector_channels, "image": self.image_channels, "tokens": self.context_channels}[name]
        axis = 2 if name == "tokens" else 1
        rank = {"vector": part.ndim == 2, "image": part.ndim >= 3, "tokens": part.ndim == 3}[name]
        return rank and part.shape[axis] == size

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        """The condition with that of the `hidden` samples replaced by "none"."""
        require(
            self.has_null,
            "label_dropout=0: this network was trained with all labels and knows no label for none; train one with "
            "network.label_dropout=0.1",
        )
        if cond is None:
            only_labels = self._asked == ("label",)
            return torch.full_like(hidden, self.num_classes, dtype=torch.long) if only_labels else None
        parts = self._parts(cond)
        if parts is None:
            raise UsageError(f"cond: {describe(cond)}; {self._need()}")
        nothing = {name: self._hidden(name, part, hidden) for name, part in parts.items()}
        for kind, mask in (("vector", "vector_mask"), ("tokens", "mask")):
            part = parts.get(kind)
            if isinstance(part, Tensor) and mask not in parts:
                kept = ~match_rank(hidden, part[..., 0])
                nothing[mask] = kept.expand(part.shape[:-1])
        return nothing["label"] if isinstance(cond, Tensor) and "label" in nothing else nothing

    def _hidden(self, name: str, part: Condition, hidden: Tensor) -> Condition:
        """A part of a condition with "none" for the `hidden` samples."""
        if not isinstance(part, Tensor):
            return part
        if name == "label":
            return part.long().masked_fill(hidden, self.num_classes)
        if name in ("mask", "vector_mask"):
            return part & ~match_rank(hidden, part)
        if name in ("image", "image_noise") and not self.keeps_image:
            return part.masked_fill(match_rank(hidden, part), 0)
        return part

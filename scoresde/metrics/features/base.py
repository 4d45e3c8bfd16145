"""What turns samples into the features that distances compare, and its name."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from scoresde.codec import Codec
from scoresde.errors import UsageError


class FeatureNetwork(ABC):
    """A map from raw samples `(B, *)` to features `(B, F)`.

    Attributes:
        tag: the name of the features: network, checksum of its weights, resizing, range and layer. Features of
            different tags are never compared.
        num_features: F.
    """

    tag: str
    num_features: int

    @abstractmethod
    def __call__(self, samples: Tensor) -> Tensor:
        """Features, `(B, F)`, of raw samples on the host."""

    def logits(self, features: Tensor) -> Tensor:
        """The logits of a classifier, `(B, C)`, of features.

        Raises:
            UsageError: for features that no classifier is known for.
        """
        raise UsageError(f"features={self.tag!r}: belong to no classifier, which an Inception score needs")


@final
class Values(FeatureNetwork):
    """The values of the samples themselves, for vectors.

    Args:
        shape: of a sample.
        codec: the map to the units in which they are compared; by default those of the samples.
    """

    def __init__(self, shape: tuple[int, ...], codec: Codec | None = None) -> None:
        self._codec = codec
        self.num_features = math.prod(shape)
        units = "" if codec is None else f"/units {hashlib.blake2b(repr(codec).encode(), digest_size=4).hexdigest()}"
        self.tag = f"values/{self.num_features}{units}"

    def __call__(self, samples: Tensor) -> Tensor:
        values = samples if self._codec is None else self._codec.encode(samples, torch.float32)
        return values.flatten(1).float()


@final
class CallableFeatures(FeatureNetwork):
    """A user-defined map.

    Args:
        function: raw samples `(B, *)` to features `(B, F)`.
        num_features: F.
        tag: the name of the features; give another to a function that computes others.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], num_features: int, tag: str) -> None:
        self.function = function
        self.num_features = num_features
        self.tag = tag

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        return self.function(samples)


def checksum(tensors: dict[str, Tensor]) -> str:
    """Eight digits that tell weights apart."""
    digest = hashlib.blake2b(digest_size=4)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

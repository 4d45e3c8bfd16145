"""Features of many samples, in memory or in files."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.errors import UsageError, require
from scoresde.metrics.features.base import FeatureNetwork

BATCH = 32  # samples at a time, the last ones repeated if there are fewer: rounding depends on their number


@final
@dataclass(frozen=True)
class FeatureSet:
    """Features `(N, F)` of some samples, in parts, and what they are of.

    Attributes:
        parts: `(n, F)` each, float32; or the `.npz` files of them, which are read one at a time.
        count: N.
        num_features: F.
        tag: of the network (`FeatureNetwork`).
        source: of the samples, in messages.
        labels: their classes, `(N,)`, or None.
        head: features to the logits of a classifier.
    """

    parts: Sequence[Tensor | Path]
    count: int
    num_features: int
    tag: str
    source: str = "samples"
    labels: Tensor | None = None
    head: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def of(
        cls,
        features: Tensor,
        tag: str,
        source: str = "samples",
        labels: Tensor | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
    ) -> FeatureSet:
        """Features that are known.

        Raises:
            UsageError: for features of another shape than `(N, F)`, or that are not finite.
        """
        require(
            features.ndim == 2 and len(features) >= 2,
            f"{source}: features of shape {tuple(features.shape)}; need (samples, features), two samples or more",
        )
        check_finite(features, source)
        return cls([features], len(features), features.shape[1], tag, source, labels, head)

    def __len__(self) -> int:
        return self.count

    def chunks(self) -> Iterator[Tensor]:
        """The parts, in order."""
        for part in self.parts:
            yield part if isinstance(part, Tensor) else torch.from_numpy(read_array(part, "features"))

    def subset(self, limit: int | None = None, label: int | None = None) -> FeatureSet:
        """At most `limit` of them in memory, chosen at random but always the same; of one class, if it is given."""
        of_class = torch.arange(self.count)
        if label is not None:
            assert self.labels is not None
            of_class = of_class[self.labels == label]
        order = torch.randperm(len(of_class), generator=torch.Generator().manual_seed(0))
        index = of_class[order[:limit]].sort().values
        wanted = torch.zeros(self.count, dtype=torch.bool)
        wanted[index] = True
        kept = []
        first = 0
        for chunk in self.chunks():
            kept.append(chunk[wanted[first : first + len(chunk)]])
            first += len(chunk)
        labels = None if self.labels is None else self.labels[index]
        return FeatureSet([torch.cat(kept)], len(index), self.num_features, self.tag, self.source, labels, self.head)

    def features(self) -> Tensor:
        """All of them, `(N, F)`."""
        return torch.cat(list(self.chunks()))


def read_array(file: Path, name: str) -> np.ndarray:
    """An array of an `.npz` file.

    Raises:
        UsageError: if the file is damaged.
    """
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            found: np.ndarray = arrays[name]
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise UsageError(f"{file}: is damaged ({error}); remove it, and the same command computes it again") from error
    return found


def check_finite(features: Tensor, source: str) -> None:
    """Raises `UsageError` for features that are NaN or infinite."""
    bad = int((~features.isfinite()).any(1).sum())
    if bad:
        raise UsageError(f"{source}: {bad} of {len(features)} samples have features that are NaN or infinite")


def extract(
    network: FeatureNetwork,
    samples: Tensor,
    labels: Tensor | None = None,
    source: str = "samples",
    on_batch: Callable[[int], None] | None = None,
) -> FeatureSet:
    """The features of raw samples `(N, *)`, in memory.

    Args:
        network: gives the features.
        samples: in raw units.
        labels: their classes, `(N,)`.
        source: of the samples, in messages.
        on_batch: called with the number of samples after each batch.
    """
    return FeatureSet.of(features_of(network, samples, source, on_batch), network.tag, source, labels, network.logits)


def features_of(
    network: FeatureNetwork, samples: Tensor, source: str, on_batch: Callable[[int], None] | None = None
) -> Tensor:
    """Features `(N, F)` of raw samples, computed a few at a time.

    Raises:
        UsageError: for features of another shape, or that are not finite.
    """
    found = torch.empty(len(samples), network.num_features)
    for rows in batches(len(samples), BATCH):
        index = torch.arange(rows.start, rows.start + BATCH).clamp(max=len(samples) - 1)
        part = network(samples[index])
        require(
            part.shape == (BATCH, network.num_features),
            f"features={network.tag!r}: gives {tuple(part.shape)} of {BATCH} samples, need "
            f"{(BATCH, network.num_features)}",
        )
        found[rows] = part[: rows.stop - rows.start]
        if on_batch is not None:
            on_batch(rows.stop - rows.start)
    check_finite(found, source)
    return found

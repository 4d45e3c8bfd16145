"""What is asked of samples before training: their ends, their root mean square and their checksum, in one pass."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde import condition
from scoresde.checkpoint import Checksum
from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.data.scaling import LEVELS, MAX_COUNTED, count_bytes


@final
@dataclass(frozen=True)
class Survey:
    """Samples in a few numbers.

    Attributes:
        low, high: the smallest and the largest raw value.
        rms: root mean square over all entries, in the model's units; None for codecs other than `Scaling`, which may
            be networks.
        digest: a checksum of values, their order, conditions and captions.
    """

    low: float
    high: float
    rms: float | None
    digest: str


@final
class Surveyor:
    """Takes all samples, block by block, and says what they are.

    Of bytes in a few channels it counts how often each of the 256 values occurs.

    Args:
        shape: of all samples together, `(N, *shape)`.
        dtype: of the samples.
        codec: the map to the model's units.
        cond: conditions of the samples.
        index: their places in a larger data set, if they are a part of one.
        texts: their captions, to which a condition may refer by number.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        codec: Codec,
        cond: Condition,
        index: Tensor | None,
        texts: tuple[str, ...] = (),
    ) -> None:
        self._shape = shape
        self._codec = codec
        self._checksum = Checksum()
        order = {} if index is None else {"index": index}
        self._checksum.take(order | dict(condition.parts(cond)) | _said(texts))
        self._checksum.begin("values", shape, dtype)
        self._counted = dtype == torch.uint8 and shape[1] <= MAX_COUNTED and isinstance(codec, Scaling)
        self._counts = torch.zeros(shape[1], LEVELS, dtype=torch.long)
        self._ends: list[tuple[float, float]] = []
        self._squares = 0.0

    def add(self, block: Tensor) -> None:
        """Takes the next samples."""
        self._checksum.add(block)
        if self._counted:
            self._counts += count_bytes(block).cpu()
            return
        low, high = block.aminmax()
        self._ends.append((low.item(), high.item()))
        if isinstance(self._codec, Scaling):
            self._squares += self._codec.encode(block, torch.float64).square().sum().item()

    def finish(self) -> Survey:
        """What the samples are."""
        if self._counted:
            self._weigh_counts()
        low, high = min(low for low, _ in self._ends), max(high for _, high in self._ends)
        rms = math.sqrt(self._squares / math.prod(self._shape)) if isinstance(self._codec, Scaling) else None
        return Survey(low, high, rms, self._checksum.end())

    def _weigh_counts(self) -> None:
        """Ends and squares of bytes that were counted."""
        levels = torch.arange(LEVELS, dtype=torch.uint8)
        found = levels[self._counts.sum(0) > 0]
        self._ends.append((found[0].item(), found[-1].item()))
        every = levels[:, None].expand(-1, self._shape[1]).reshape(LEVELS, -1, *[1] * (len(self._shape) - 2))
        x = self._codec.encode(every, torch.float64).reshape(LEVELS, -1)
        self._squares = (x.square() * self._counts.T).sum().item()


def _said(texts: tuple[str, ...]) -> dict[str, Tensor]:
    """Captions as bytes, of which a checksum can be taken; nothing if there are none."""
    if not texts:
        return {}
    content = json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return {"texts": torch.frombuffer(bytearray(content), dtype=torch.uint8)}

"""Iteration over many samples, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most `batch_size` samples that cover 0 .. count - 1 in order."""
    for first in range(0, count, batch_size):
        yield slice(first, min(first + batch_size, count))

"""Samples in a .npy file, of which rows are read when they are asked for: data may be larger than memory.

Rows are read with `pread`. A memory map would be shorter and about as fast. But if a mapped file is cut short, or its
disk fails, the system ends the process without a message; here both are errors that name the file. And the pages of a
map count as memory of the process, up to the size of the file.
"""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import UsageError, naming

GAP = 2**14  # bytes between two rows up to which they are read together
SPAN = 2**24  # bytes that are read at a time
T = TypeVar("T")


def numpy_type(dtype: torch.dtype) -> np.dtype:
    """The numpy type of a tensor's type."""
    return torch.empty(0, dtype=dtype).numpy().dtype


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The same blocks, of which a thread makes the next one while the last one is used."""
    with ThreadPoolExecutor(1, "blocks") as thread:
        waiting = thread.submit(next, blocks, None)
        while (block := waiting.result()) is not None:
            waiting = thread.submit(next, blocks, None)
            yield block


@final
class OpenFile:
    """A file that is open for reading, and is closed when nothing needs it any more.

    Attributes:
        path: the file, for error messages.
        descriptor: by which the system knows it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@final
@dataclass(frozen=True, eq=False)
class FileArray:
    """Samples `(N, *shape)` in a file; indices and slices give tensors in memory.

    It is safe to read from several threads.

    Attributes:
        file: the open file.
        offset: where its first row begins, in bytes.
        kind: type of the numbers in the file.
        shape: number of samples, and shape of a sample.
        dtype: type of the tensors.
        places: the row of each sample, `(N,)`; None if they are all rows in their order.
    """

    file: OpenFile
    offset: int
    kind: np.dtype
    shape: tuple[int, ...]
    dtype: torch.dtype
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        raw = self.raw(index)
        with np.errstate(over="ignore"):  # numbers too large for float32 become infinite
            return torch.from_numpy(raw.astype(numpy_type(self.dtype), copy=False))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where its rows are read to."""
        return torch.device("cpu")

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def numel(self) -> int:
        """Number of entries, as of a tensor."""
        return self.size

    def is_floating_point(self) -> bool:
        """Whether its rows are floats."""
        return self.dtype.is_floating_point

    def split(self, size: int) -> Iterator[Tensor]:
        """All samples in their order, `size` at a time."""
        return ahead(self[start : start + size] for start in range(0, len(self), size))

    def typed(self, dtype: torch.dtype) -> FileArray:
        """The same samples as tensors of another type."""
        return replace(self, dtype=dtype)

    def reshape(self, *shape: int) -> FileArray:
        """The same samples in another shape."""
        return replace(self, shape=shape)

    def part(self, index: Tensor) -> FileArray:
        """Some of the samples; none is read."""
        return replace(self, shape=(len(index), *self.shape[1:]), places=self._rows(index))

    def raw(self, index: Tensor | slice) -> np.ndarray:
        """Some of the samples, in the type of the file.

        Raises:
            UsageError: if the file has become shorter.
            OSError: if it cannot be read.
        """
        rows = self._rows(index)
        found = np.empty((len(rows), *self.shape[1:]), self.kind)
        if found.size == 0:
            return found
        width = found.nbytes // len(rows)
        order = np.argsort(rows, kind="stable")
        rows = rows[order].astype(np.int64, copy=False)  # in the order of the file, as disks prefer
        far = (np.diff(rows) > 1 + GAP // width) | (np.diff(rows // max(1, SPAN // width)) != 0)
        straight = (np.diff(rows) == 1) & (np.diff(order) == 1)  # rows that go where they lie
        starts = np.concatenate([[0], np.flatnonzero(far) + 1])
        ends = np.append(starts[1:], len(rows))
        target = found.reshape(-1).view(np.uint8).data
        with naming(self.file.path):
            if len(starts) > 1:
                self._announce(rows[starts] * width, (rows[ends - 1] + 1 - rows[starts]) * width)
            if width <= GAP:
                alone = ends - starts == 1
                found[order[starts[alone]]] = self._scattered(rows[starts[alone]] * width, width)
                starts, ends = starts[~alone], ends[~alone]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                first, last, place = (int(number) for number in (rows[start], rows[end - 1], order[start]))
                if straight[start : end - 1].all():
                    self._fill(target[place * width : (place + end - start) * width], first * width)
                else:
                    span = np.empty((last + 1 - first, *self.shape[1:]), self.kind)
                    self._fill(span.reshape(-1).view(np.uint8).data, first * width)
                    found[order[start:end]] = span[rows[start:end] - first]
        return found

    def _announce(self, places: np.ndarray, sizes: np.ndarray) -> None:
        """Tells the system which parts will be read, so that the disk fetches them side by side."""
        if sys.platform == "linux":
            parts = (self.offset + places).tolist(), sizes.tolist()
            told = map(os.posix_fadvise, repeat(self.file.descriptor), *parts, repeat(os.POSIX_FADV_WILLNEED))
            deque(told, maxlen=0)  # a loop without Python's instructions, as in `_scattered`

    def _scattered(self, places: np.ndarray, width: int) -> np.ndarray:
        """Small rows from any places, without Python's instructions for each, which would cost as much as the read."""
        offsets = (self.offset + places).tolist()
        content = b"".join(map(os.pread, repeat(self.file.descriptor), repeat(width), offsets))
        if len(content) == len(places) * width:
            return np.frombuffer(content, self.kind).reshape(-1, *self.shape[1:])
        found = np.empty((len(places), width), np.uint8)  # as a call may read less than it was asked for
        for row, place in zip(found, places.tolist(), strict=True):
            self._fill(row.data, place)
        return found.reshape(-1).view(self.kind).reshape(-1, *self.shape[1:])

    def _rows(self, index: Tensor | slice) -> np.ndarray:
        """The rows of the file that hold some samples."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self))) if self.places is None else self.places[index]
        chosen = index.cpu().numpy()
        return chosen if self.places is None else self.places[chosen]

    def _fill(self, target: memoryview, start: int) -> None:
        """Reads bytes of the array from a place on."""
        done = 0
        while done < len(target):  # `preadv` would save a copy, and is not on every system
            content = os.pread(self.file.descriptor, min(SPAN, len(target) - done), self.offset + start + done)
            if not content:
                raise UsageError(f"{str(self.file.path)!r}: has become shorter while it was read; put it back whole")
            target[done : done + len(content)] = content
            done += len(content)

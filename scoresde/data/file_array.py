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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from scoresde.errors import UsageError, naming

GAP = 2**14  # bytes between two rows up to which they are read together
SPAN = 2**24  # bytes that are read at a time


def numpy_type(dtype: torch.dtype) -> np.dtype:
    """The numpy type of a tensor's type."""
    return torch.empty(0, dtype=dtype).numpy().dtype


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
        return (self[start : start + size] for start in range(0, len(self), size))

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
        rows = rows[order]  # in the order of the file, as disks prefer
        far = (np.diff(rows) > 1 + GAP // width) | (np.diff(rows // max(1, SPAN // width)) != 0)
        straight = (np.diff(rows) == 1) & (np.diff(order) == 1)  # rows that go where they lie
        starts = np.concatenate([[0], np.flatnonzero(far) + 1])
        ends = np.append(starts[1:], len(rows))
        firsts, lasts, places = rows[starts].tolist(), rows[ends - 1].tolist(), order[starts].tolist()
        target = found.reshape(-1).view(np.uint8).data
        with naming(self.file.path):
            if len(starts) > 1 and sys.platform == "linux":
                for first, last in zip(firsts, lasts, strict=True):  # so that the disk fetches them side by side
                    where = self.offset + first * width
                    os.posix_fadvise(self.file.descriptor, where, (last + 1 - first) * width, os.POSIX_FADV_WILLNEED)
            spans = zip(starts.tolist(), ends.tolist(), firsts, lasts, places, strict=True)
            for start, end, first, last, place in spans:
                if end - start == 1 or straight[start : end - 1].all():
                    self._fill(target[place * width : (place + end - start) * width], first * width)
                else:
                    span = np.empty((last + 1 - first, *self.shape[1:]), self.kind)
                    self._fill(span.reshape(-1).view(np.uint8).data, first * width)
                    found[order[start:end]] = span[rows[start:end] - first]
        return found

    def _rows(self, index: Tensor | slice) -> np.ndarray:
        """The rows of the file that hold some samples."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self))) if self.places is None else self.places[index]
        chosen = index.cpu().numpy()
        return chosen if self.places is None else self.places[chosen]

    def _fill(self, target: memoryview, start: int) -> None:
        """Reads bytes of the array from a place on."""
        done = 0
        while done < len(target):  # a call reads at most 2 GB
            count = os.preadv(self.file.descriptor, [target[done:] if done else target], self.offset + start + done)
            if count == 0:
                raise UsageError(f"{str(self.file.path)!r}: has become shorter while it was read; put it back whole")
            done += count

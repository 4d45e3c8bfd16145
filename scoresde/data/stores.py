"""Where samples go as they are read: into an array in memory, or into a .npy file that may be larger than memory."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import shutil
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, final

import numpy as np
import torch
from numpy.lib import format as npy_format

from scoresde.data.file_array import FileArray, OpenFile
from scoresde.data.options import ReadOptions
from scoresde.errors import machine_error, naming, require

BLOCK = 2**24  # bytes that are moved at a time
COLUMNS_FIRST = "lies column by column (Fortran order) and cannot be read from disk; save np.ascontiguousarray(x)"
KINDS = "fiub"  # floating point, integer, unsigned, truth value


class Raw(NamedTuple):
    """Samples as a reader finds them, their labels `(N,)`, the names of the classes, and the samples' captions."""

    values: np.ndarray | FileArray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = None


class Store(ABC):
    """Takes samples of one shape, one after the other."""

    @abstractmethod
    def begin(self, shape: tuple[int, ...], kind: np.dtype, source: str) -> None:
        """Makes room for samples `(at most N, *shape)`.

        Raises:
            UsageError: if there is not enough.
        """

    @abstractmethod
    def append(self, samples: np.ndarray) -> None:
        """Takes the next samples, `(n, *shape)`."""

    @abstractmethod
    def finish(self) -> np.ndarray | FileArray:
        """All samples that were taken."""


NewStore = Callable[[], Store]
Watch = Callable[[int, int], None]  # told how many samples are written, of how many


@final
class MemoryStore(Store):
    """Keeps samples in memory.

    Args:
        options: the limit on their size.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._values = np.empty(0)
        self._count = 0

    def begin(self, shape: tuple[int, ...], kind: np.dtype, source: str) -> None:
        self._options.require_room(math.prod(shape) * kind.itemsize, source)
        self._values = np.empty(shape, kind)

    def append(self, samples: np.ndarray) -> None:
        self._values[self._count : self._count + len(samples)] = samples
        self._count += len(samples)

    def finish(self) -> np.ndarray:
        return self._values[: self._count]


@final
class FileStore(Store):
    """Writes samples to a .npy file.

    Args:
        path: the file, which is written over.
        watch: is told how far it is.
    """

    def __init__(self, path: Path, watch: Watch | None = None) -> None:
        self._path = path
        self._watch = watch
        self._total = 0
        self._shape: tuple[int, ...] = ()
        self._kind = np.dtype(np.uint8)
        self._count = 0
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # if the reader fails before `finish`

    def begin(self, shape: tuple[int, ...], kind: np.dtype, source: str) -> None:
        needed = math.prod(shape) * kind.itemsize
        free = shutil.disk_usage(self._path.parent).free
        require(
            needed <= free,
            f"{source}: takes {needed / 1e9:.3g} GB on disk, and {free / 1e9:.3g} GB are free; make room, or choose "
            "another data.cache",
        )
        self._shape = shape[1:]
        self._kind = kind
        self._total = shape[0]
        self._write_header(shape[0])

    def append(self, samples: np.ndarray) -> None:
        with self._named():
            self._file.write(np.ascontiguousarray(samples, self._kind).reshape(-1).view(np.uint8).data)
        self._count += len(samples)
        if self._watch is not None:
            self._watch(self._count, self._total)

    def finish(self) -> FileArray:
        with self._named():
            self._file.seek(0)
            self._write_header(self._count)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return open_array(self._path, str(self._path))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns an `OSError` into a `UsageError` that names the file; a reader would call it a fault of its own."""
        try:
            with naming(self._path):
                yield
        except OSError as error:
            raise machine_error(error) from error

    def _write_header(self, count: int) -> None:
        """Writes the header, whose length does not depend on the count: numpy leaves room for any first axis."""
        shape = (count, *self._shape)
        fields = {"descr": npy_format.dtype_to_descr(self._kind), "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(self._file, fields)


def fill(
    store: Store, file: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], kind: np.dtype, source: str
) -> np.ndarray | FileArray:
    """Reads an array in C order from an open file into a store that has begun, some rows at a time.

    Raises:
        UsageError: if the file ends before the array does.
    """
    width = math.prod(shape[1:]) * kind.itemsize
    size = max(1, BLOCK // max(1, width))
    for start in range(0, shape[0] if shape else 0, size):
        rows = np.empty((min(size, shape[0] - start), *shape[1:]), kind)
        content = rows.reshape(-1).view(np.uint8).data
        done = 0
        while done < rows.nbytes:
            count = file.readinto(content[done:])  # type: ignore[union-attr]
            done += count
            require(
                count > 0, f"{source}: holds {start * width + done:,} of the {shape[0] * width:,} bytes it declares"
            )
        store.append(rows)
    return store.finish()


def open_array(path: Path, source: str) -> FileArray:
    """The array in a .npy file, of which nothing is read but the header.

    Raises:
        UsageError: for an array of other things than numbers, columns first, or of another size than it declares.
    """
    with path.open("rb") as file:
        shape, fortran, kind = read_header(file, "x", source)
        offset = file.tell()
    require(not fortran, f"{source}: {COLUMNS_FIRST}")
    check_size(shape, kind, path.stat().st_size - offset, "x", source)
    return FileArray(OpenFile(path), offset, kind, shape, torch.float64)


def read_header(file: IO[bytes], name: str, source: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type, of the array of numbers in an open .npy file."""
    version = npy_format.read_magic(file)
    require(version in ((1, 0), (2, 0)), f"{source}: {name!r} is in version {version} of the format; need numbers")
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, kind = read(file)
    require(not kind.hasobject, f"{source}: cannot be read as arrays of numbers: {name!r} holds pickled objects")
    require(kind.kind in KINDS, f"{source}: {name!r} is of type {kind}; need numbers")
    return shape, fortran, kind


def check_size(shape: tuple[int, ...], kind: np.dtype, num_bytes: int, name: str, source: str) -> None:
    """Raises `UsageError` unless an array has the size that its header declares."""
    declared = math.prod(shape) * kind.itemsize
    require(
        declared == num_bytes and min(shape, default=0) >= 0,
        f"{source}: cannot be read as arrays of numbers: {name!r} declares {declared:,} bytes of shape {shape} "
        f"and holds {num_bytes:,}",
    )

"""IDX, the format of MNIST: a header of 4 + 4 d bytes, then the numbers, big-endian.

The header holds two zeros, a code for the type, the number d of axes, and the length of each axis in 32 bits. Files are
often packed with gzip. No more is unpacked than the header declares (and one byte, to see that nothing follows), and
only if the packed file can hold it: deflate packs at most 1032 to 1.

Labels lie in a separate file beside the images: train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import IO

import numpy as np

from scoresde.data.file_array import FileArray
from scoresde.data.options import ReadOptions, reading
from scoresde.data.stores import MemoryStore, NewStore, Raw, Store, fill
from scoresde.errors import require

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
DEFLATE_LIMIT = 1032
KIND = "an IDX file"


def is_idx(path: Path) -> bool:
    """Whether a file is named like an IDX file, or ends with .gz."""
    name = path.name.removesuffix(".gz")
    return path.name.endswith(".gz") or "idx" in name or name.endswith("ubyte")


def idx_images(folder: Path) -> Path | None:
    """The file of images in a folder of IDX files: the only one, or the one for training, as in MNIST's folder."""
    named = (path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith("ubyte"))
    found = [path for path in sorted(named) if "images" in path.name and path.is_file()]
    chosen = found if len(found) == 1 else [path for path in found if "train" in path.name]
    return chosen[0] if len(chosen) == 1 else None


def read_idx(path: Path, options: ReadOptions, source: str, new_store: NewStore) -> Raw:
    """Reads images or other samples, and their labels from `labels_path` or from the file beside them."""
    values = read_idx_array(path, source, new_store())
    labels_path = Path(options.labels_path) if options.labels_path else labels_beside(path)
    if not options.class_conditional or labels_path is None:
        return Raw(values)
    labels = read_idx_array(labels_path, f"data.labels_path={str(labels_path)!r}", MemoryStore(options))
    assert isinstance(labels, np.ndarray)
    return Raw(values, labels)


def labels_beside(path: Path) -> Path | None:
    """The file of labels beside a file of images, under its usual name, packed or not; None if there is none."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        return None
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    return next((path.with_name(n) for n in (name, other) if path.with_name(n).is_file()), None)


def read_idx_array(path: Path, source: str, store: Store) -> np.ndarray | FileArray:
    """The array in one file.

    Raises:
        UsageError: for a file that is damaged, or longer or shorter than its header says.
    """
    with reading(source, KIND), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        size = raw.seek(0, 2)
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw) as file:
                return _read(file, size * DEFLATE_LIMIT, source, store)
        return _read(raw, size, source, store)


def _read(file: IO[bytes] | gzip.GzipFile, at_most: int, source: str, store: Store) -> np.ndarray | FileArray:
    zeros, code, num_axes = struct.unpack(">HBB", file.read(4))
    require(zeros == 0 and code in TYPES and num_axes > 0, f"{source}: cannot be read as {KIND}: no IDX header")
    shape = struct.unpack(f">{num_axes}I", file.read(4 * num_axes))
    kind = np.dtype(TYPES[code])
    declared = math.prod(shape) * kind.itemsize
    store.begin(shape, kind, source)
    require(declared <= at_most, f"{source}: its header declares {declared:,} bytes, more than the file can hold")
    values = fill(store, file, shape, kind, source)
    require(not file.read(1), f"{source}: holds more than the {declared:,} bytes that its header declares")
    return values

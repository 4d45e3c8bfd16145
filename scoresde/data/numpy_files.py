"""Arrays of numbers: .npy and .npz files, and the checks and scaling that all sources share.

An array (N, H, W) is taken as grey images, (N, 1, H, W). `scaling` brings the values to the model's units.

A .npz file is a zip archive. A few kilobytes can unpack to gigabytes, and the sizes that the archive and the array
declare may be false. So only `x` and `labels` (or `y`) are read, and only after checks: the size in the array's header
is compared with the memory limit and with the size in the archive, and that with `MAX_RATIO` times the packed size.
Objects, which are pickles, are refused.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from scoresde.data.arrays import MAX_CLASSES, ArrayData, check_finite, check_shape
from scoresde.data.captioning import with_captions
from scoresde.data.file_array import FileArray
from scoresde.data.options import OWN, ReadOptions, reading
from scoresde.data.scaling import scaling_of, typed_moments
from scoresde.data.stores import (
    COLUMNS_FIRST,
    MemoryStore,
    NewStore,
    Raw,
    Store,
    check_size,
    fill,
    open_array,
    read_header,
)
from scoresde.errors import UsageError, require

MAX_RATIO = 500  # largest ratio of unpacked to packed size, for arrays above SMALL
SMALL = 2**24  # bytes
LABELS = ("labels", "y")


def read_numpy(path: Path, options: ReadOptions, source: str, new_store: NewStore) -> Raw:
    """Reads a .npy file, or a .npz file with `x` and perhaps `labels` (or `y`); the content decides which it is."""
    with reading(source, "arrays of numbers"), path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, options, source, new_store)
        file.seek(0)
        values: np.ndarray | FileArray
        if options.from_disk:
            values = open_array(path, source)
        else:
            values = _read_array(file, path.stat().st_size, "x", options, source, new_store())
    return Raw(values, read_labels(options))


def is_array(path: Path) -> bool:
    """Whether a file is one array, and not an archive of several."""
    return path.suffix == ".npy" and not zipfile.is_zipfile(path)


def array_shape(path: Path, source: str) -> tuple[int, ...]:
    """Shape of the samples in a file that is one array."""
    with reading(source, "an array of numbers"):
        shape = open_array(path, source).shape
    return (1, *shape[1:]) if len(shape) == 3 else shape[1:]


def read_labels(options: ReadOptions) -> np.ndarray | None:
    """The labels in the .npy file that the options name, if they name one."""
    if not (options.labels_path and options.class_conditional):
        return None
    path = Path(options.labels_path)
    source = f"data.labels_path={options.labels_path!r}"
    with reading(source, "an array of labels"), path.open("rb") as file:
        return _labels(_read_array(file, path.stat().st_size, "x", options, source, MemoryStore(options)))


def _read_archive(archive: zipfile.ZipFile, options: ReadOptions, source: str, new_store: NewStore) -> Raw:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    drawn = "x" not in members and "samples" in members  # what --mode sample writes
    if drawn:
        members["x"] = members["samples"]
    require("x" in members, f"{source}: holds {sorted(members)[:10]}; need an array named 'x'")
    label = next((name for name in LABELS if name in members), None)
    arrays: dict[str, np.ndarray | FileArray] = {}
    for name in ("x",) if label is None else ("x", label):
        info = members[name]
        require(
            info.file_size <= max(MAX_RATIO * info.compress_size, SMALL),
            f"{source}: {name!r} unpacks from {info.compress_size:,} bytes to {info.file_size:,}: an archive bomb, "
            "or next to empty; store it without compression if it is sound",
        )
        store = new_store() if name == "x" else MemoryStore(options)
        with archive.open(info) as member:
            arrays[name] = _read_array(member, info.file_size, name, options, source, store)
    labels = None if label is None else _labels(arrays[label])
    if drawn and labels is not None and (labels < 0).all():  # -1 stands for no class
        labels = None
    return Raw(arrays["x"], labels)


def _labels(array: np.ndarray | FileArray) -> np.ndarray:
    assert isinstance(array, np.ndarray)  # as it was read into memory
    return array


def _read_array(
    file: IO[bytes], num_bytes: int, name: str, options: ReadOptions, source: str, store: Store
) -> np.ndarray | FileArray:
    """Reads the array in an open file of a known size, after checks of its header."""
    shape, fortran, kind = read_header(file, name, source)
    require(len(shape) > 0, f"{source}: {name!r} has shape (); need an entry a sample")
    store.begin(shape, kind, source)
    check_size(shape, kind, num_bytes - file.tell(), name, source)
    if not fortran:
        return fill(store, file, shape, kind, source)
    require(not options.from_disk, f"{source}: {name!r} {COLUMNS_FIRST}")
    file.seek(0)
    return npy_format.read_array(file, allow_pickle=False)


def from_raw(raw: Raw, options: ReadOptions, source: str) -> ArrayData:
    """Data from arrays, with the checks and the scaling that all sources share."""
    values, labels, class_names, captions = raw
    try:
        check_shape(values.shape)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    if values.ndim == 3:
        values = values.reshape(len(values), 1, *values.shape[1:])  # grey images
    require(
        values.ndim != 4 or values.shape[1] in (1, 3, 4) or values.shape[3] not in (1, 3, 4),
        f"{source}: looks like (N, H, W, C), with channels last, by its shape {values.shape}; "
        "save x.transpose(0, 3, 1, 2)",
    )
    require(
        options.captions != OWN or captions is not None,
        f"{source}: data.captions={OWN!r} reads the captions of folders of images and of tables, and here are none; "
        "leave it out",
    )
    if not options.class_conditional or captions is not None:
        labels = None
        class_names = ()
    if labels is not None:
        count = len(values)
        require(
            labels.dtype.kind in "iu" and labels.shape == (count,),
            f"{source}: 'labels' is of type {labels.dtype} and shape {labels.shape}; need {count} integers, one a "
            "sample",
        )
    try:
        classes = None
        if labels is not None:
            classes, class_names = number_classes(labels, class_names)
        tensor, found = typed_moments(values)
        data = ArrayData(tensor, classes, class_names=class_names)
        if not (found.low.isfinite() & found.high.isfinite()).all():
            check_finite(tensor)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    data = replace(data, codec=scaling_of(found, tensor.ndim, source))
    return data if captions is None else with_captions(data, captions)


def number_classes(labels: np.ndarray, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels as class numbers 0, 1, ..., and the names of the classes.

    Only classes that occur count. If labels leave out numbers, such as 1..10 or years, they are numbered in their
    order, and what they were are the names.

    Raises:
        UsageError: for negative labels, which often stand for none, labels without a name, or too many classes.
    """
    found, numbered = np.unique(labels.astype(np.int64), return_inverse=True)
    smallest, largest = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
    require(smallest >= 0, f"labels: the smallest is {smallest}; count from 0")
    limit = len(names) or math.inf
    require(largest < limit, f"labels: the largest is {largest}; need class numbers below {limit}")
    require(
        len(found) <= MAX_CLASSES,
        f"labels: {len(found)} different ones; need at most {MAX_CLASSES} classes, or data.class_conditional=False",
    )
    if names:
        names = tuple(names[number] for number in found)
    elif largest >= len(found):
        names = tuple(map(str, found.tolist()))
    return torch.from_numpy(numbered.reshape(-1)), names

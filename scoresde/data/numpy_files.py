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

from scoresde.data.arrays import MAX_CLASSES, ArrayData
from scoresde.data.options import ReadOptions, reading
from scoresde.data.scaling import as_tensor, fit_scaling
from scoresde.errors import UsageError, require

KINDS = "fiub"  # floating point, integer, unsigned, truth value
MAX_RATIO = 500  # largest ratio of unpacked to packed size, for arrays above SMALL
SMALL = 2**24  # bytes
KNOWN = ("x", "labels", "y")


def read_numpy(path: Path, options: ReadOptions, source: str) -> ArrayData:
    """Reads a .npy file, or a .npz file with `x` and perhaps `labels` (or `y`); the content decides which it is."""
    with reading(source, "arrays of numbers"), path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                arrays = _read_archive(archive, options, source)
        else:
            file.seek(0)
            arrays = {"x": _read_array(file, path.stat().st_size, "x", options, source)}
    return from_arrays(arrays["x"], arrays.get("labels", arrays.get("y")), options, source)


def _read_archive(archive: zipfile.ZipFile, options: ReadOptions, source: str) -> dict[str, np.ndarray]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    drawn = "x" not in members and "samples" in members  # what --mode sample writes
    if drawn:
        members["x"] = members["samples"]
    require("x" in members, f"{source}: holds {sorted(members)[:10]}; need an array named 'x'")
    arrays = {}
    for name in KNOWN:
        if name in members:
            info = members[name]
            require(
                info.file_size <= max(MAX_RATIO * info.compress_size, SMALL),
                f"{source}: {name!r} unpacks from {info.compress_size:,} bytes to {info.file_size:,}: an archive bomb, "
                "or next to empty; store it without compression if it is sound",
            )
            with archive.open(info) as member:
                arrays[name] = _read_array(member, info.file_size, name, options, source)
    if drawn and "labels" in arrays and (arrays["labels"] < 0).all():  # -1 stands for no class
        del arrays["labels"]
    return arrays


def _read_array(file: IO[bytes], num_bytes: int, name: str, options: ReadOptions, source: str) -> np.ndarray:
    """Reads the array in an open file of a known size, after checks of its header."""
    version = npy_format.read_magic(file)
    require(version in ((1, 0), (2, 0)), f"{source}: {name!r} is in version {version} of the format; need numbers")
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, kind = read_header(file)
    require(not kind.hasobject, f"{source}: cannot be read as arrays of numbers: {name!r} holds pickled objects")
    require(kind.kind in KINDS, f"{source}: {name!r} is of type {kind}; need numbers")
    declared = math.prod(shape) * kind.itemsize
    options.require_room(declared, source)
    require(
        declared == num_bytes - file.tell() and min(shape, default=0) >= 0,
        f"{source}: cannot be read as arrays of numbers: {name!r} declares {declared:,} bytes of shape {shape} "
        f"and holds {num_bytes - file.tell():,}",
    )
    file.seek(0)
    return npy_format.read_array(file, allow_pickle=False)


def from_arrays(
    values: np.ndarray, labels: np.ndarray | None, options: ReadOptions, source: str, class_names: tuple[str, ...] = ()
) -> ArrayData:
    """Data from arrays, with the checks and the scaling that all sources share."""
    if values.ndim == 3:
        values = values[:, None]  # grey images
    require(
        values.ndim != 4 or values.shape[1] in (1, 3, 4) or values.shape[3] not in (1, 3, 4),
        f"{source}: looks like (N, H, W, C), with channels last, by its shape {values.shape}; "
        "save x.transpose(0, 3, 1, 2)",
    )
    if not options.class_conditional:
        labels = None
        class_names = ()
    if labels is not None:
        count = values.shape[0] if values.ndim else 0
        require(
            labels.dtype.kind in "iu" and labels.shape == (count,),
            f"{source}: 'labels' is of type {labels.dtype} and shape {labels.shape}; need {count} integers, one a "
            "sample",
        )
    try:
        classes = None
        if labels is not None:
            classes, class_names = number_classes(labels, class_names)
        data = ArrayData(as_tensor(values), classes, class_names=class_names)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    return replace(data, codec=fit_scaling(data.values, source))


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

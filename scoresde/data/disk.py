"""Data that are read from disk, batch by batch, because they do not fit into memory.

A .npy file is read where it lies. Everything else (folders of images, tables, archives) is converted once to a .npy
file in the folder `data.cache`, by the same readers as in memory. With it are kept the labels or captions, the names of
the classes, the type of the tensors and the scaling. So every kind of data is trained on in one way.

A conversion has a folder of its own. Its name is a checksum of what it depends on: the names, sizes and times of the
files, and the options. The folder gets this name when it is whole; one that was left by a killed process is begun
anew. A lock makes other processes wait for the one that converts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoresde import condition
from scoresde._files import write_bytes, write_text
from scoresde._json import parse_json
from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.file_array import FileArray
from scoresde.data.folders import walk
from scoresde.data.options import OWN, ReadOptions
from scoresde.data.stores import FileStore, NewStore, Watch, open_array
from scoresde.errors import UsageError, machine_error, require

FORMAT = 1  # of a conversion
VALUES = "values.npy"
LABELS = "labels.npy"
CAPTIONS = "captions.json"
DESCRIPTION = "description.json"
TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)
IRRELEVANT = ("max_gigabytes", "from_disk", "cache")  # to what is read


def converted(
    files: Sequence[tuple[str, Path | None]],
    options: ReadOptions,
    source: str,
    read: Callable[[NewStore], ArrayData],
    watch: Watch | None = None,
) -> ArrayData:
    """Data in a .npy file of the cache, which is written first if it is not there.

    Args:
        files: all that the data depend on, each with the name by which it is known; None for what is not here.
        options: of reading.
        source: what the data are called in errors.
        read: reads the data into stores that it is given.
        watch: is told how far the conversion is.

    Raises:
        UsageError: if there is no cache, it cannot be written, or the data cannot be read.
    """
    require(
        bool(options.cache),
        f"{source}: is converted once to be read from disk; name a folder for that with data.cache=FOLDER",
    )
    cache = Path(options.cache).expanduser()
    key = _key(files, options)
    place = cache / key
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not place.is_dir():
            with _claimed(cache / f".{key}.partial") as partial:
                if not place.is_dir():
                    _write(partial, read, watch)
                    partial.rename(place)
                    _sync(cache)
    except OSError as error:
        raise machine_error(error) from error
    return _read(place)


def files_of(path: Path, options: ReadOptions, source: str) -> list[tuple[str, Path]]:
    """A file, or all files of a folder, each with its name in there.

    Raises:
        UsageError: if the cache lies in the folder: what is written there would count as data.
    """
    if not path.is_dir():
        return [(path.name, path)]
    inside = options.cache and Path(options.cache).expanduser().resolve().is_relative_to(path.resolve())
    require(not inside, f"data.cache={options.cache!r}: lies among the data, {source}; name a folder elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader warns of links
        return [(name, path / name) for name in walk(path, source)]


def _key(files: Sequence[tuple[str, Path | None]], options: ReadOptions) -> str:
    """A checksum of the names, sizes and times of files, and of the options."""
    states = []
    for name, path in files:
        if path is None:
            states.append([name, 0, 0])
            continue
        found = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
        states.append([name, found.st_size, found.st_mtime_ns])
    chosen = {name: value for name, value in asdict(options).items() if name not in IRRELEVANT}
    if options.captions != OWN:  # others are made of what is read
        del chosen["captions"]
    text = json.dumps([FORMAT, states, chosen], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@contextlib.contextmanager
def _claimed(partial: Path) -> Iterator[Path]:
    """An empty folder that no other process writes to; it is removed unless it is renamed."""
    while True:
        with contextlib.suppress(FileExistsError):
            partial.mkdir()
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process was done with it just then
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_open(partial, descriptor):  # the same, while this one waited
                continue
            for file in partial.iterdir():  # of a process that was killed
                file.unlink()
            try:
                yield partial
            finally:
                if _is_open(partial, descriptor):
                    shutil.rmtree(partial)
            return
        finally:
            os.close(descriptor)


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether a path leads to what is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(folder: Path, read: Callable[[NewStore], ArrayData], watch: Watch | None) -> None:
    """Writes a whole conversion into an empty folder."""
    numbers = itertools.count()
    data = read(lambda: FileStore(folder / f"{next(numbers)}.npy", watch))
    values = data.values
    assert isinstance(values, FileArray)
    assert isinstance(data.codec, Scaling)
    values.file.path.rename(folder / VALUES)
    for file in folder.glob("[0-9]*.npy"):  # before they were brought to another size
        file.unlink()
    if data.labels is not None:
        content = io.BytesIO()
        np.save(content, data.labels.numpy())
        write_bytes(folder / LABELS, content.getvalue())
    if data.texts:
        ((_, places),) = condition.parts(data.cond)
        captions = {"texts": data.texts, "numbers": places.tolist()}
        write_text(folder / CAPTIONS, json.dumps(captions))
    description = {
        "shape": values.shape,
        "dtype": str(values.dtype),
        "center": data.codec.center,
        "scale": data.codec.scale,
        "class_names": data.class_names,
    }
    write_text(folder / DESCRIPTION, json.dumps(description))
    _sync(folder)


def _read(folder: Path) -> ArrayData:
    """Reads a conversion.

    Raises:
        UsageError: for one that is damaged.
    """
    try:
        found: dict[str, Any] = parse_json((folder / DESCRIPTION).read_bytes())
        dtype = {str(known): known for known in TYPES}[found["dtype"]]
        center, scale = (tuple(part) if isinstance(part, list) else part for part in (found["center"], found["scale"]))
        values = open_array(folder / VALUES, str(folder / VALUES)).reshape(*found["shape"]).typed(dtype)
        labels = folder / LABELS
        cond = torch.from_numpy(np.load(labels, allow_pickle=False)) if labels.exists() else None
        data = ArrayData(values, cond, Scaling(center, scale), tuple(found["class_names"]))
        if not (folder / CAPTIONS).exists():
            return data
        captions = parse_json((folder / CAPTIONS).read_bytes())
        numbers = torch.tensor(captions["numbers"], dtype=torch.long)
        return replace(data, cond={"text": numbers}, texts=tuple(map(str, captions["texts"])))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{str(folder)!r}: is damaged ({error}); delete it, and it is written anew") from error


def _sync(folder: Path) -> None:
    """Makes what was renamed in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

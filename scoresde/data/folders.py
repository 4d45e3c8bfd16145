"""Folders: of images, of parquet files, or written by `save_to_disk`.

A folder of images is searched recursively. If every image lies in a sub-folder, and there are at least two, those of
the first level are the classes, numbered in sorted order. If all of these are named as splits (train, test and so on),
one of them is the data, and the classes lie below it.

Files are taken in the sorted order of their paths. Hidden files and folders are skipped, and so are pipes, devices and
sockets. Links to folders are not followed, because they may form circles; a warning names them. A link to a file is
read; one that leads nowhere counts as an unreadable image.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from scoresde.data.decoding import gather
from scoresde.data.images import SUFFIXES
from scoresde.data.options import OWN, ReadOptions, choose_split, reading
from scoresde.data.own_captions import beside
from scoresde.data.parquet import is_saved, read_parquet, read_saved
from scoresde.data.stores import Raw, Store
from scoresde.errors import require

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


def read_folder(path: Path, options: ReadOptions, source: str, store: Store) -> Raw:
    """Reads the images of a folder.

    Raises:
        UsageError: if there are none, or both image files and parquet files.
    """
    if is_saved(path):
        return read_saved(path, options, source, store)
    with reading(source, "a folder"):
        files = [path / file for file in walk(path, source)]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    tables = [file for file in files if file.suffix == ".parquet"]
    require(
        bool(images) != bool(tables),
        f"{source}: holds {len(images)} images and {len(tables)} parquet files; need a folder of either "
        f"(images end with {', '.join(sorted(SUFFIXES))})",
    )
    if tables:
        return read_parquet(tables, options, source, store)
    return read_images(path, images, options, source, store)


def holds_pictures(path: Path) -> bool:
    """Whether a path is an image file, or a folder with one."""
    if path.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
    return path.suffix.lower() in SUFFIXES


def _natural(name: str) -> tuple[bool, int, str]:
    """The place of a class among others: whole numbers by their value, before words."""
    return not name.isdigit(), int(name) if name.isdigit() else 0, name


def walk(root: Path, source: str) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; hidden and special ones are left out."""
    found: list[str] = []
    linked: list[str] = []

    def refuse(error: OSError) -> None:
        raise error

    for folder, below, files in os.walk(root, onerror=refuse):
        linked += [os.path.join(folder, name) for name in below if os.path.islink(os.path.join(folder, name))]
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            regular = os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))
            if regular and not name.startswith("."):
                found.append(os.path.relpath(path, root))
    if linked:
        more = ", ..." if len(linked) > 1 else ""
        warnings.warn(
            f"{source}: {len(linked)} links to folders are not followed: {min(linked)!r}{more}; copy what they lead to",
            stacklevel=2,
        )
    return sorted(found, key=lambda path: path.split(os.sep))


def read_images(root: Path, files: list[Path], options: ReadOptions, source: str, store: Store) -> Raw:
    """Reads image files of a folder, with the first level of sub-folders as classes."""
    parts = [file.relative_to(root).parts for file in files]
    names = sorted({p[0] for p in parts if len(p) > 1}, key=_natural)
    nested = all(len(p) > 1 for p in parts)
    if nested and len(names) > 1 and SPLITS.issuperset(names):
        root = root / choose_split(names, options, source)
        return read_images(root, [file for file in files if file.is_relative_to(root)], options, source, store)
    values, kept = gather(((repr(str(file)), file) for file in files), len(files), options, source, store)
    if options.captions == OWN:
        return Raw(values, captions=beside([files[number] for number in kept], root, source))
    if not nested or len(names) < 2:
        return Raw(values)
    labels = np.array([names.index(p[0]) for p in parts])
    return Raw(values, labels[kept], tuple(names))

"""Loads data by a name, or from a user's file or folder.

Every source gives `ArrayData`: all samples in one array in memory, images as bytes until a batch is made. Most data
sets fit: CIFAR-10 is 150 MB, ImageNet at 64 x 64 is 16 GB. Larger ones are read from disk, batch by batch (`disk`).

Points in the plane are made in `toys`. The kind of path selects the reader: `numpy_files` for `.npy` and `.npz`, `idx`
for IDX, `folders` for folders and images, and `parquet` for tables (parquet files, `save_to_disk`, the Hugging Face
hub). Nothing is fetched from a network unless the name begins with `hf:`, and nothing that is read is ever run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.captioned_digits import digits_text
from scoresde.data.captioning import captioned
from scoresde.data.disk import converted, files_of
from scoresde.data.folders import read_folder, read_images
from scoresde.data.idx import idx_images, is_idx, labels_beside, read_idx
from scoresde.data.images import SUFFIXES, refits, refitted
from scoresde.data.numpy_files import array_shape, from_raw, is_array, read_numpy
from scoresde.data.options import OWN, ReadOptions, reading
from scoresde.data.parquet import hugging_face_stream, hugging_face_table, read_hugging_face, read_parquet
from scoresde.data.stores import MemoryStore, NewStore, Watch
from scoresde.data.toys import TOYS
from scoresde.errors import UsageError, require, unknown_name


def digits() -> ArrayData:
    """1,797 handwritten digits, 8x8, grey levels 0..16 (UCI; included in scikit-learn)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    values = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    return ArrayData(values, torch.from_numpy(bunch.target), Scaling(center=8.0, scale=8.0))


SOURCES = {"digits": digits, "digits_text": digits_text, **TOYS}
HUGGING_FACE = "hf:"
FILES = "an image, .npy, .npz, .parquet, IDX (MNIST's, .gz or not), or a folder of images or of .parquet files"


def load(name: str = "", path: str = "", options: ReadOptions | None = None, watch: Watch | None = None) -> ArrayData:
    """Loads data by name, or from a file or folder if `path` is given.

    Args:
        name: a built-in name, or `hf:` and the name of a Hugging Face data set, which may then be downloaded.
        path: a file or folder of a kind in `FILES`; it takes precedence over the name.
        options: size, channels and limits; the defaults take images as they are.
        watch: of a conversion of data that are read from disk, is told how many samples are written, of how many.

    Raises:
        UsageError: for data that cannot be read, with the reason.
    """
    options = options or ReadOptions()
    if path:
        source = f"data.path={path!r}"
        with reading(source, "data"):
            return captioned(read_path(Path(path), options, source, watch), options, source)
    source = f"data.name={name!r}"
    if name.startswith(HUGGING_FACE):
        given = name.removeprefix(HUGGING_FACE)
        streamed = hugging_face_stream(given, options, source) if options.from_disk else None
        files: list[tuple[str, Path | None]]
        if streamed is not None:
            table, known = streamed
            files = [(known, None)]
        else:
            table, paths = hugging_face_table(given, options, source)
            files = [(f"{name}/{file.name}", file) for file in paths]

        def read(new_store: NewStore) -> ArrayData:
            return from_raw(read_hugging_face(table, options, source, new_store()), options, source)

        if options.from_disk:
            return captioned(converted(files, options, source, read, watch), options, source)
        return captioned(read(lambda: MemoryStore(options)), options, source)
    if name not in SOURCES:
        unknown = unknown_name("data.name", name, [*SOURCES, f"{HUGGING_FACE}NAME"])
        raise UsageError(f"{unknown}; data of your own are given by config.data.path")
    require(not options.from_disk, f"data.from_disk=True: {source} is made in memory; leave it at False")
    require(options.captions != OWN, f"{source}: data.captions={OWN!r} is for data of your own; leave it out")
    data = SOURCES[name]()
    if not options.class_conditional:
        data = replace(data, cond=None, texts=())
    return captioned(refitted(data, options, source, lambda: MemoryStore(options)), options, source)


def read_path(path: Path, options: ReadOptions, source: str, watch: Watch | None = None) -> ArrayData:
    """Reads a file or folder, into memory or as the options say."""
    require(path.exists(), f"{source}: cannot be read: there is no such file or folder")
    if path.is_dir():
        path = idx_images(path) or path
    require(
        not options.labels_path or is_idx(path) or path.suffix == ".npy",
        f"data.labels_path={options.labels_path!r}: only IDX and .npy files have their labels elsewhere, not {source}",
    )
    if not options.from_disk or (path.is_file() and is_array(path) and not refits(array_shape(path, source), options)):
        return _read_path(path, options, source, lambda: MemoryStore(options))
    files = files_of(path, options, source)
    labels = [Path(options.labels_path)] if options.labels_path else [labels_beside(path)]
    files += [(file.name, file) for file in labels if file is not None]
    return converted(files, options, source, lambda new_store: _read_path(path, options, source, new_store), watch)


def _read_path(path: Path, options: ReadOptions, source: str, new_store: NewStore) -> ArrayData:
    """Reads a file or folder with the reader for its kind."""
    if path.is_dir():
        return from_raw(read_folder(path, options, source, new_store()), options, source)
    if path.suffix.lower() in SUFFIXES:
        return from_raw(read_images(path.parent, [path], options, source, new_store()), options, source)
    if path.suffix == ".parquet":
        return from_raw(read_parquet([path], options, source, new_store()), options, source)
    if path.suffix in (".npy", ".npz"):
        raw = read_numpy(path, options, source, new_store)
    else:
        require(is_idx(path), f"{source}: cannot be read as data; need {FILES}")
        raw = read_idx(path, options, source, new_store)
    return refitted(from_raw(raw, options, source), options, source, new_store)

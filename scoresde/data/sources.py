"""Where data comes from: a name, or a file or folder of the user's.

Every source ends as `ArrayData`: all samples in one array in memory, images as bytes until a batch is made. Pictures of
the sizes that these models are trained on are small: the whole of CIFAR-10 is 150 MB, ImageNet at 64 x 64 is 16 GB.
Points in the plane are made in `toys`. What reading needs is decided by the name alone: `.npy` and `.npz` in `numbers`,
IDX in `idx`, folders in `folders`, and tables (parquet, `save_to_disk`, the Hugging Face hub) in `tables`. Nothing is
fetched from a network unless the name begins with `hf:`, and nothing that is read is ever run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from scoresde.data.arrays import ArrayData, Scaling
from scoresde.data.folders import read_folder
from scoresde.data.idx import idx_images, is_idx, read_idx
from scoresde.data.images import refitted
from scoresde.data.numpy_files import read_numpy
from scoresde.data.options import ReadOptions, reading
from scoresde.data.parquet import read_hugging_face, read_parquet
from scoresde.data.toys import TOYS
from scoresde.errors import require, unknown_name


def digits() -> ArrayData:
    """1,797 handwritten digits, 8x8, grey levels 0..16 (UCI; they come with scikit-learn)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    values = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    return ArrayData(values, torch.from_numpy(bunch.target), Scaling(center=8.0, scale=8.0))


SOURCES = {"digits": digits, **TOYS}
HUGGING_FACE = "hf:"
FILES = ".npy, .npz, .parquet, IDX (MNIST's, .gz or not), or a folder of images or of .parquet files"


def load(name: str = "", path: str = "", choices: ReadOptions | None = None) -> ArrayData:
    """Data by name, or from the user's own file or folder if `path` is given.

    Args:
        name: a built-in name, or `hf:` and the name of a Hugging Face data set, which may then be downloaded.
        path: a file or folder of a kind in `FILES`; it goes before the name.
        choices: size, channels and limits; the defaults take images as they are.

    Raises:
        UsageError: for anything that cannot be read, and says why.
    """
    choices = choices or ReadOptions()
    if path:
        source = f"data.path={path!r}"
        with reading(source, "data"):
            return read_path(Path(path), choices, source)
    source = f"data.name={name!r}"
    if name.startswith(HUGGING_FACE):
        return read_hugging_face(name.removeprefix(HUGGING_FACE), choices, source)
    if name not in SOURCES:
        raise unknown_name("data.name", name, [*SOURCES, f"{HUGGING_FACE}NAME"])
    data = SOURCES[name]()
    if not choices.class_conditional:
        data = replace(data, labels=None)
    return refitted(data, choices, source)


def read_path(path: Path, choices: ReadOptions, source: str) -> ArrayData:
    """Data of the user's own, by the kind of file or folder."""
    require(path.exists(), f"{source}: cannot be read: there is no such file or folder")
    if path.is_dir():
        path = idx_images(path) or path
    require(
        not choices.labels_path or is_idx(path),
        f"data.labels_path={choices.labels_path!r}: only IDX files have their labels elsewhere, and {source} is none",
    )
    if path.is_dir():
        return read_folder(path, choices, source)
    if path.suffix == ".parquet":
        return read_parquet([path], choices, source)
    if path.suffix in (".npy", ".npz"):
        return refitted(read_numpy(path, choices, source), choices, source)
    require(is_idx(path), f"{source}: cannot be read as data; need {FILES}")
    return refitted(read_idx(path, choices, source), choices, source)

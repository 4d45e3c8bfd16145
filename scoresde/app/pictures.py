"""Samples as files: a picture to look at, and the numbers."""

from __future__ import annotations

import io
import textwrap
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde import plots
from scoresde._files import MARK, write_bytes
from scoresde.data.info import DataInfo
from scoresde.resize import resize

MAX_IN_PICTURE = 100
MAX_COLUMNS = 20
MAX_TEXTS = 12  # beside rows of images
MAX_TEXT_COLUMNS = 8
TEXT_WIDTH = 28  # letters of a line


def save_picture(path: Path, raw: Tensor, info: DataInfo, labels: Tensor | None = None, columns: int = 0) -> None:
    """The first samples as a PNG: images in a grid, points as a scatter plot.

    Args:
        path: the file.
        raw: samples `(N, *shape)` in raw units.
        info: of the data; images are shown from `low` to `high`.
        labels: classes of points, which colour them.
        columns: of the grid; a column for each class if it is 0 and there are not too many.
    """
    if raw.ndim == 4:
        channels = 3 if raw.shape[1] >= 3 else 1  # of other data the first channels are shown
        shown = raw[:MAX_IN_PICTURE, :channels]
        classes = info.num_classes if 0 < info.num_classes <= MAX_COLUMNS else 0
        columns = columns or classes or max(1, round(len(shown) ** 0.5))
        picture = plots.image_grid(info.to_unit(shown), columns)
    else:
        picture = plots.image_of(plots.scatter(raw.flatten(1), labels), dpi=120)
    write_bytes(path, plots.png_bytes(picture))


def save_prompts(path: Path, raw: Tensor, info: DataInfo, texts: Sequence[str]) -> None:
    """Images of some texts as a PNG: a row for each text, which stands beside it; more texts than fit make a grid.

    Args:
        path: the file.
        raw: samples `(N, *shape)` in raw units, of the texts in turn.
        info: of the data.
        texts: what was asked for.
    """
    columns = min(len(raw) // len(texts), MAX_TEXT_COLUMNS)
    if raw.ndim != 4 or len(texts) > MAX_TEXTS or columns == 0:
        save_picture(path, raw, info)
        return
    channels = 3 if raw.shape[1] >= 3 else 1
    shown = raw[: columns * len(texts), :channels].unflatten(0, (columns, len(texts))).transpose(0, 1)
    rows = ["\n".join(textwrap.wrap(text, TEXT_WIDTH)) or "(no text)" for text in texts]
    figure = plots.image_strips([plots.Strip("", info.to_unit(shown.float()), rows=rows)])
    write_bytes(path, plots.png_bytes(plots.image_of(figure, dpi=120)))


def save_stages(path: Path, stages: Sequence[tuple[Tensor, DataInfo]], labels: Tensor | None = None) -> None:
    """The samples of the stages of a cascade as a PNG: images side by side, as large as the last ones.

    Args:
        path: the file.
        stages: samples `(N, *shape)` of each stage in raw units, with what is known of their data.
        labels: classes of points, which colour them.
    """
    last, info = stages[-1]
    if last.ndim != 4:
        save_picture(path, last, info, labels)
        return
    shown = [resize(own.to_unit(raw[:MAX_IN_PICTURE].float()), last.shape[2:], "area") for raw, own in stages]
    gap = torch.full_like(shown[-1][..., :1], torch.nan)  # which is grey
    parts = [part for image in shown for part in (image, gap)][:-1]
    save_picture(path, torch.cat(parts, 3), replace(info, low=0.0, high=1.0))


def save_numbers(path: Path, **arrays: Tensor | np.ndarray) -> None:
    """Arrays by name, as .npz."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    with zipfile.ZipFile(content, "a") as archive:
        archive.comment = MARK.encode()
    write_bytes(path, content.getvalue())


def labels_array(labels: Tensor | None, count: int) -> np.ndarray:
    """Labels `(N,)` as they are written: -1 for samples without."""
    return np.full(count, -1) if labels is None else labels.cpu().numpy()


def seeds_array(seed: int, count: int) -> np.ndarray:
    """(seed, index) of each sample."""
    return np.stack([np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64)], 1)

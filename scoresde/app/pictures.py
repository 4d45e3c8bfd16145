"""Samples as files: a picture to look at, and the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde import plots

MAX_IN_PICTURE = 100


def demo_labels(num_samples: int, num_classes: int) -> Tensor | None:
    """Labels 0, 1, ..., num_classes - 1, 0, 1, ...: in a grid of that many columns, one column a class."""
    return torch.arange(num_samples) % num_classes if num_classes else None


def save_picture(path: Path, raw: Tensor, labels: Tensor | None, low: float, high: float, num_classes: int) -> None:
    """The first samples as a PNG: images in a grid (a column a class), points as a scatter plot."""
    if raw.ndim == 4:
        channels = 3 if raw.shape[1] >= 3 else 1  # of other data the first channels are shown
        shown = raw[:MAX_IN_PICTURE, :channels]
        columns = num_classes if 0 < num_classes <= 20 else max(1, round(len(shown) ** 0.5))
        plots.image_grid((shown - low) / (high - low), columns).save(path)
    else:
        figure = plots.scatter(raw.flatten(1), labels)
        figure.savefig(path, dpi=120)


def save_numbers(path: Path, raw: Tensor, labels: Tensor | None, seed: int) -> None:
    """samples `(N, *shape)` in raw units, labels `(N,)` (-1 without), and the seeds: (seed, index) of each sample."""
    count = len(raw)
    np.savez_compressed(
        path,
        samples=raw.numpy(),
        labels=np.full(count, -1) if labels is None else labels.numpy(),
        seeds=np.stack([np.full(count, seed, dtype=np.uint64), np.arange(count, dtype=np.uint64)], 1),
    )

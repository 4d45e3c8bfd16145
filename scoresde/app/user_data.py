"""The data that a trained model is asked about: the held-out part of its own, or a file of the user's."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde.app.sample import scaling_of
from scoresde.checkpoint import Checkpoint
from scoresde.data import ArrayData, ReadOptions
from scoresde.data.options import reading
from scoresde.data.sources import read_path
from scoresde.errors import require
from sde_configs import build


def own_data(checkpoint: Checkpoint, config: ConfigDict) -> tuple[ArrayData, ArrayData | None]:
    """The training and the held-out samples of a checkpoint's run.

    Raises:
        UsageError: where the data are not those that the run was trained on.
    """
    train, held_out = build.build_data(config)
    kept = checkpoint.tensors.get("held_out")
    same = kept is None or (held_out is not None and held_out.index is not None and torch.equal(kept, held_out.index))
    require(same, "checkpoint: its data have changed since it was trained; put them back as they were")
    return train, held_out


def asked_data(checkpoint: Checkpoint, config: ConfigDict, path: str | None) -> tuple[ArrayData, str]:
    """The samples that are asked about, scaled as the model's, and what they are."""
    if path is None:
        return held_out_data(own_data(checkpoint, config)[1]), "held out"
    return data_of(path, checkpoint, config), path


def held_out_data(held_out: ArrayData | None) -> ArrayData:
    """The held-out samples; raises `UsageError` for a run without."""
    require(
        held_out is not None,
        "checkpoint: its run held out no samples (config.data.held_out); give some with --input FILE",
    )
    assert held_out is not None
    return held_out


def data_of(path: str, checkpoint: Checkpoint, config: ConfigDict) -> ArrayData:
    """The samples of a file or folder of the user's, scaled as the model's.

    Raises:
        UsageError: for samples of another shape or range, or without the labels that the model needs.
    """
    described: dict[str, Any] = checkpoint.description["data"]
    choices = {
        f.name: config.data[f.name] for f in fields(ReadOptions) if f.name in config.data and f.name != "labels_path"
    }
    source = f"input={path!r}"
    with reading(source, "data"):
        data = read_path(Path(path), ReadOptions(**choices), source)
    shape = tuple(checkpoint.description["model"]["shape"])
    require(data.shape == shape, f"{source}: holds samples of shape {data.shape}; this model takes {shape}")
    low, high = data.values.min().item(), data.values.max().item()
    margin = 0 if described["quantized"] else described["high"] - described["low"]
    require(
        described["low"] - margin <= low and high <= described["high"] + margin,
        f"{source}: holds values from {low:g} to {high:g}; the model was trained on {described['low']:g} to "
        f"{described['high']:g}; bring them to that range",
    )
    classes = described["num_classes"]
    require(
        classes == 0 or (data.labels is not None and data.num_classes <= classes),
        f"{source}: the model was trained with labels 0 to {classes - 1}; give such labels with the samples",
    )
    labels = data.labels if classes else None
    return replace(data, labels=labels, class_names=(), scaling=scaling_of(described))


def labels_of(data: ArrayData, checkpoint: Checkpoint) -> Tensor | None:
    """The labels that the model is to be given."""
    return data.labels if checkpoint.description["data"]["num_classes"] else None

"""The data that a trained model is asked about: the held-out part of its own, or a user's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde.app.conversion import read_data
from scoresde.app.drawing import read_prompts
from scoresde.app.import_weights import IMPORTED
from scoresde.app.parts import captioned
from scoresde.app.trained import Trained
from scoresde.checkpoint import Checkpoint
from scoresde.condition import Condition
from scoresde.data.arrays import ArrayData
from scoresde.data.folders import holds_pictures
from scoresde.data.info import DataInfo, has_fingerprint
from scoresde.data.options import ReadOptions, reading
from scoresde.data.sources import read_path
from scoresde.errors import UsageError, require

PIXELS = (0, 255)  # the range of pictures


def own_data(trained: Trained) -> tuple[ArrayData, ArrayData | None]:
    """The training and the held-out samples of a checkpoint's run, in the model's codec; errors as of `data_of`."""
    train, held_out = data_of(trained.checkpoint, trained.config, trained.data)
    return _as_trained(trained, train), None if held_out is None else _as_trained(trained, held_out)


def data_of(checkpoint: Checkpoint, config: ConfigDict, info: DataInfo) -> tuple[ArrayData, ArrayData | None]:
    """The training and the held-out samples of a checkpoint's run, as they were read.

    Raises:
        UsageError: if the data are not those that the run was trained on.
    """
    require(
        config.data.name != IMPORTED or config.data.path != "",
        "data.path='': this run was imported, and its data are not known here; give --input, or the data by "
        "--config.data.path=PLACE",
    )
    try:
        train, held_out = read_data(config)
    except UsageError as error:
        raise UsageError(f"{error}; if the data moved, give their place with --config.data.path") from error
    changed = "checkpoint: its data have changed since it was trained; put them back as they were"
    require(info.digest == "" or has_fingerprint(train, info.digest), changed)
    known = checkpoint.tensors.get("held_out")
    same = known is None or (held_out is not None and held_out.index is not None and torch.equal(known, held_out.index))
    require(same, changed)
    digest = info.held_out_digest
    require(digest == "" or (held_out is not None and has_fingerprint(held_out, digest)), changed)
    return train, held_out


def _as_trained(trained: Trained, data: ArrayData) -> ArrayData:
    """Data in the model's codec, with their captions encoded."""
    if trained.captioned and data.texts:
        data = captioned(data, trained.text_encoder, None if trained.run is None else trained.run.path)
    return replace(data, codec=trained.network_model.codec)


def asked_data(
    trained: Trained, path: str | None, classes: str | None = None, prompt: str | None = None
) -> tuple[ArrayData, str]:
    """The samples that are asked about, in the model's codec and with the model's conditions, and what they are.

    Args:
        trained: what is asked.
        path: a user's file or folder; None for the held-out samples.
        classes: of the samples, as in "3,1,4", instead of their own labels.
        prompt: their captions, as `read_prompts` takes them, instead of their own.

    Raises:
        UsageError: for a run without held-out samples, or a file that does not suit the model.
    """
    texts = read_prompts(prompt, classes)
    data, source = _asked(trained, path, classes is None)
    if texts:
        return replace(data, cond=trained.of_texts(texts, len(data)), texts=(), table=None), source
    if classes is not None:
        data = replace(data, cond=trained.conditions(len(data), classes))
    return data, source


def _asked(trained: Trained, path: str | None, labelled: bool) -> tuple[ArrayData, str]:
    if path is not None:
        return _of_file(trained, path, labelled), path
    try:
        held_out = own_data(trained)[1]
    except UsageError as error:
        raise UsageError(f"{error}; or give other samples with --input FILE") from error
    if held_out is None:
        raise UsageError("checkpoint: its run held out no samples (config.data.held_out); give some with --input FILE")
    return held_out, "held out"


def _of_file(trained: Trained, path: str, labelled: bool) -> ArrayData:
    """The samples of a user's file or folder.

    Raises:
        UsageError: for samples of another shape or range, or without the labels that the model needs.
    """
    info = trained.data
    model = trained.network_model
    source = f"input={path!r}"
    taken = trained.raw_shape
    images = len(taken) == 3 and taken[0] in (1, 3)
    pictures = images and holds_pictures(Path(path).expanduser())
    given = {"channels": taken[0], "image_size": taken[1:]} if pictures else {}
    data = read_samples(trained, path, source, given)
    if pictures and info.quantized:
        data = replace(data, values=data.values[:].round().int())
    require(data.shape == taken, f"{source}: holds samples of shape {data.shape}; this model takes {taken}")
    low, high = data.ends()
    margin = 0 if info.quantized else info.high - info.low
    require(
        info.low - margin <= low and high <= info.high + margin,
        f"{source}: holds values from {low:g} to {high:g}; the model was trained on {info.low:g} to {info.high:g}; "
        "bring them to that range",
    )
    labels: Condition = _labels(data, info, source) if info.num_classes and labelled else None
    if trained.captioned:
        labels = trained.without_caption(len(data))
    return replace(data, cond=labels, class_names=info.class_names, codec=model.codec)


def read_samples(trained: Trained, path: str, source: str, given: Mapping[str, Any]) -> ArrayData:
    """Samples of a file or folder, read as the run's own data are; pictures are brought to the range of those.

    Args:
        trained: whose data they are like.
        path: the file or folder.
        source: what it is called in errors.
        given: options of reading that differ from those of the run.
    """
    info = trained.data
    known = trained.config.data
    options: dict[str, Any] = {f.name: known[f.name] for f in fields(ReadOptions) if f.name in known}
    options |= {"labels_path": "", "captions": "", **given}
    place = Path(path).expanduser()
    with reading(source, "data"):
        data = read_path(place, ReadOptions(**options), source)
    if (info.low, info.high) == PIXELS or not holds_pictures(place):
        return data
    values = info.low + data.values[:].float() * ((info.high - info.low) / (PIXELS[1] - PIXELS[0]))
    return replace(data, values=values)


def _labels(data: ArrayData, info: DataInfo, source: str) -> Tensor:
    """The labels of a user's samples by the numbers of the model's classes of the same names."""
    named = ", ".join(info.class_names[:10]) if info.class_names else f"0 to {info.num_classes - 1}"
    need = (
        f"{source}: the model was trained with labels {named}; give such labels with the samples, or --labels to solve "
        "and edit"
    )
    require(data.labels is not None, need)
    assert data.labels is not None
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    try:
        numbers = torch.tensor([info.class_number(name) for name in names])
    except UsageError as error:
        raise UsageError(f"{need} ({error})") from error
    require(int(numbers.max()) < info.num_classes, need)
    return numbers[data.labels]

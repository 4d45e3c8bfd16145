"""The real samples that distances compare with."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from scoresde.app.flags import EvaluateFlags
from scoresde.app.trained import Trained
from scoresde.codec import Codec
from scoresde.data.arrays import ArrayData
from scoresde.data.info import DataInfo
from scoresde.data.options import ReadOptions, reading
from scoresde.data.sources import read_path
from scoresde.errors import UsageError, require
from scoresde.metrics.features import Levels

HELD_OUT = "held_out"
TRAIN = "train"


class Real(NamedTuple):
    """Real samples, others that give the floor (or None), and the names of both."""

    data: ArrayData
    others: ArrayData | None
    name: str
    others_name: str = "training samples"


def levels_of(info: DataInfo) -> Levels:
    """The range of images."""
    return Levels(float(info.low), float(info.high))


def read_samples(path: str, argument: str, config: ConfigDict, codec: Codec | None = None) -> ArrayData:
    """The samples of a file or folder, read as the fields of `config.data` say.

    Args:
        path: the file or folder.
        argument: the flag that names it.
        config: size and channels are read from it.
        codec: of the samples; by default that which their values give.

    Raises:
        UsageError: if it cannot be read.
    """
    options = {f.name: config.data[f.name] for f in fields(ReadOptions) if f.name in config.data}
    options |= {"captions": ""}
    source = f"{argument}={path!r}"
    with reading(source, "data"):
        data = read_path(Path(path).expanduser(), ReadOptions(**options), source)
    return data if codec is None else replace(data, codec=codec)


def real_data(trained: Trained, flags: EvaluateFlags, data: ArrayData, source: str, train: ArrayData | None) -> Real:
    """The samples that `--reference` names, by default those that are evaluated.

    Args:
        trained: the model.
        flags: of the command.
        data: what is evaluated.
        source: of it.
        train: the training data, or None if they cannot be had.

    Raises:
        UsageError: if they cannot be had.
    """
    reference = flags.reference
    if reference in (None, HELD_OUT):
        given = f"reference={reference!r}, input={flags.input!r}"
        require(reference is None or flags.input is None, f"{given}: give one of them")
        return Real(data, train, f"{len(data)} real ones ({source})")
    if reference == TRAIN:
        if train is None:
            raise UsageError("reference='train': the training data cannot be had")
        return Real(train, data, f"{len(train)} training samples", source)
    assert reference is not None
    read = read_samples(reference, "reference", trained.config, trained.network_model.codec)
    require(
        read.shape == data.shape,
        f"reference={reference!r}: holds samples of shape {read.shape}; this model gives {data.shape}",
    )
    return Real(read, train, f"{len(read)} of {reference}")

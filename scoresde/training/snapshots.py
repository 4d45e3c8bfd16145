"""Snapshots of averages with power profiles, from which the average of any length is reconstructed after training.

A snapshot is a checkpoint file that holds these averages alone: `power0.score.*`, `power1.score.*`, ... with their
lengths in the header. `scoresde.training.power` says how they are added.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scoresde import checkpoint
from scoresde.checkpoint import Checkpoint
from scoresde.errors import UsageError, require
from scoresde.models.base import TrainedModel
from scoresde.training.power import Profile, combination, gamma_of
from scoresde.training.trainer import Trainer

LENGTHS = "ema_lengths"  # in the header of a snapshot: of its averages
COPIED = "copied"  # in the header of a snapshot: tensors that are not averaged
AVERAGE = "average"  # in the header of what is reconstructed: of what length, from what
COARSE = 0.1  # relative error of a profile above which it is said

T = TypeVar("T")


class Kept(NamedTuple):
    """An average in a snapshot.

    Attributes:
        path: of the snapshot.
        number: its place among the averages there.
        profile: its profile.
    """

    path: Path
    number: int
    profile: Profile


def save_snapshot(path: Path | str, trainer: Trainer[Any], description: Mapping[str, Any] | None = None) -> None:
    """Writes the averages with power profiles of a trainer. To be called in every process; the leader writes.

    Args:
        path: the file.
        trainer: with `ema_lengths` among its options.
        description: of the models, and of what else belongs to the run; by default of the model alone.

    Raises:
        UsageError: for a trainer without such averages.
    """
    lengths = trainer.options.ema_lengths
    require(len(lengths) > 0, "training.ema_lengths=(): there are no averages to keep; give two, such as (0.05, 0.1)")
    model: TrainedModel = trainer.model
    tensors = trainer.power_state()
    if not trainer.world.leader:
        return
    if description is None:
        description = {"models": {model.role: checkpoint.describe_model(model)}}
    copied = [f"{model.role}.{name}" for name in trainer.average.copied]
    header = {**description, LENGTHS: list(lengths), COPIED: copied}
    checkpoint.save(Path(path), trainer.step_number, header, tensors)


def reconstruct(paths: Sequence[Path | str], length: float, step: int | None = None) -> Checkpoint:
    """The average of any length, from the snapshots of a training, as a checkpoint with averaged weights alone.

    `reconstruct(paths, 0.07).model()` is a model to sample from, and its header says from what it was made.

    Args:
        paths: snapshots of one training. Those after `step` are not used.
        length: standard deviation of the profile over the number of steps.
        step: the step at which to average, that of a snapshot; the last one by default.

    Raises:
        UsageError: for a length or a step that cannot be had, and for files that are damaged or of several trainings.
    """
    gamma = gamma_of(length)
    headers = {Path(path): _read(checkpoint.read_header, Path(path)) for path in paths}
    require(len(headers) > 0, "paths: there are no snapshots; train with training.ema_lengths=(0.05, 0.1)")
    steps = sorted({header["step"] for header in headers.values()})
    step = steps[-1] if step is None else step
    require(step in steps, f"step={step}: there is no snapshot of this step; there are those of {_listed(steps)}")
    headers = {path: header for path, header in headers.items() if header["step"] <= step}
    kept = _kept(headers)
    last = next(path for path, header in headers.items() if header["step"] == step)
    factors, error = combination([each.profile for each in kept], Profile(gamma, step))
    if error > COARSE:
        warnings.warn(
            f"length={length:g}: the snapshots give its profile with a relative error of {error:.0%}; keep them more "
            "often, or choose a length nearer to theirs",
            stacklevel=2,
        )
    tensors = _added(kept, factors, last, headers[last][COPIED])
    description = {key: value for key, value in headers[last].items() if key not in (LENGTHS, COPIED)}
    description[AVERAGE] = {"length": length, "snapshots": len(headers), "error": error}
    description["digest"] = checkpoint.digest(tensors, description)
    return Checkpoint(step, description["digest"], description, tensors, last)


def _kept(headers: Mapping[Path, Mapping[str, Any]]) -> list[Kept]:
    """The averages in files with these headers."""
    first = next(iter(headers.values()))
    kept: dict[Profile, Kept] = {}
    for path, header in headers.items():
        lengths = header.get(LENGTHS)
        sound = isinstance(lengths, list) and all(isinstance(length, float) for length in lengths)
        require(
            sound and bool(lengths) and isinstance(header.get(COPIED), list),
            f"snapshot={str(path)!r}: not a snapshot of averages; give files of a run's snapshots/ folder",
        )
        require(
            header["models"] == first["models"],
            f"snapshot={str(path)!r}: of another model than the others; give the snapshots of one training",
        )
        for number, length in enumerate(lengths or ()):
            profile = Profile(gamma_of(length), header["step"])
            kept.setdefault(profile, Kept(path, number, profile))  # a copy of a file counts once
    return list(kept.values())


def _added(kept: Sequence[Kept], factors: Sequence[float], last: Path, copied: Sequence[str]) -> dict[str, Tensor]:
    """The sum of averages, each times its factor, in float64; what is copied is that of the last snapshot.

    Files are read one after the other, so that one is in memory beside the sum.
    """
    by_file: dict[Path, list[tuple[int, float]]] = {}
    for each, factor in zip(kept, factors, strict=True):
        by_file.setdefault(each.path, []).append((each.number, factor))
    sums: dict[str, Tensor] = {}
    for path, parts in by_file.items():
        tensors = _read(checkpoint.load, path).tensors
        for index, factor in parts:
            for name, value in _of_average(tensors, index).items():
                if name not in copied:
                    before = sums[name] if name in sums else torch.zeros(value.shape, dtype=torch.float64)
                    sums[name] = before.add_(value, alpha=factor)
                elif path == last:
                    sums[name] = value
    like = _of_average(tensors, index)
    return {f"ema.{name}": value.to(like[name].dtype) for name, value in sums.items()}


def _of_average(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The tensors of one average in a snapshot, by their names in the model."""
    prefix = f"power{index}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _read(read: Callable[[Path], T], path: Path) -> T:
    """What a function reads from a snapshot.

    Raises:
        UsageError: for a file that is missing or damaged.
    """
    try:
        return read(path)
    except UsageError as error:
        raise UsageError(f"snapshot={str(path)!r}: cannot be read ({error}); the others do without it") from error


def _listed(steps: Sequence[int]) -> str:
    """Some numbers in a row, the middle left out if they are many."""
    shown = list(map(str, steps))
    return ", ".join(shown if len(shown) <= 8 else [*shown[:4], "...", *shown[-3:]])

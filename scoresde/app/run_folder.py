"""Where the files of a run lie, and who may write there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from scoresde import checkpoint
from scoresde._files import write_text
from scoresde._json import parse_json
from scoresde.app.files import PLACE, flat, held, make_folder
from scoresde.app.pilot_cache import calibrated_path, pilots_path
from scoresde.descriptions import SCORE
from scoresde.errors import UsageError, naming, require
from sde_configs import default

HOW_TO_TRAIN = "train first: python main.py --mode train --sde vp"
FREE = ("training.num_steps", "training.accumulate", "network.checkpointing", *PLACE)  # a run can change them
CHECKPOINT = re.compile(r"step-\d{9,}\.safetensors")


@final
class RunFolder:
    """config.json, metrics.jsonl, timings.jsonl, checkpoints/, samples/ and perhaps snapshots/ under one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.timings = path / "timings.jsonl"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.snapshots = path / "snapshots"

    @classmethod
    def of_checkpoint(cls, file: Path) -> RunFolder | None:
        """The run that a file is a checkpoint of; None if it lies in no run's checkpoints/."""
        folder = file.parent
        if folder.name in ("", ".."):
            folder = Path(os.path.abspath(folder))
        run = cls(folder.parent)
        return run if folder.name == run.checkpoints.name and run.config.is_file() else None

    def create(self) -> None:
        """Makes the folders.

        Raises:
            UsageError: if they cannot be written.
        """
        for folder in (self.checkpoints, self.samples):
            make_folder(folder, "workdir", self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder against other runs; the system frees it when this process ends, however it ends.

        What a killed run had half written is removed then, when nobody else can be writing it.

        Raises:
            UsageError: if another run holds it.
        """
        with held(
            self.path, f"workdir={str(self.path)!r}: another run is writing there; wait, or choose another --workdir"
        ):
            for folder in (self.path, self.checkpoints, self.snapshots):
                for partial in folder.glob(".*.partial"):
                    partial.unlink()  # of a run that was killed while writing
            yield

    def check_config(self, config: dict[str, Any]) -> None:
        """Raises `UsageError` if the folder holds a run with another configuration.

        How long to train, what to log, how to sample, how to save memory, where the data lie and how they are held may
        differ; `train` compares the data's checksum. A field that the library did not have yet when the run began has
        its default.
        """
        if self.config.exists():
            defaults = flat(json.loads(default.get_config().to_json_best_effort()))
            try:
                old = flat(parse_json(self.config.read_bytes()))
                new = flat(config)
            except (ValueError, AttributeError) as error:
                raise UsageError(
                    f"workdir={str(self.path)!r}: its config.json is damaged ({error}); choose another --workdir"
                ) from error
            for field in sorted(old.keys() | new.keys()):
                free = field in FREE or field.startswith(("logging.", "sampling."))
                was = old.get(field, defaults.get(field))
                now = new.get(field)
                require(
                    free or was == now,
                    f"workdir={str(self.path)!r}: holds a run with config.{field}={was}, not {now}; "
                    "choose another --workdir, or the same configuration to continue that run",
                )

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the configuration."""
        write_text(self.config, json.dumps(config, indent=2) + "\n")

    def all_checkpoints(self) -> list[Path]:
        """Oldest first; a copy under another name is none of the run's."""
        return sorted(path for path in self.checkpoints.glob("step-*.safetensors") if CHECKPOINT.fullmatch(path.name))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.checkpoints / f"step-{step:09d}.safetensors"

    def all_snapshots(self) -> list[Path]:
        """Snapshots of averages, oldest first."""
        return sorted(path for path in self.snapshots.glob("step-*.safetensors") if CHECKPOINT.fullmatch(path.name))

    def snapshot_path(self, step: int) -> Path:
        """Where the snapshot of a step lies; makes the folder."""
        self.snapshots.mkdir(exist_ok=True)
        return self.snapshots / f"step-{step:09d}.safetensors"

    def demo(self, step: int) -> Path:
        """Where the picture of samples after a step lies."""
        return self.samples / f"training-step-{step:09d}.png"

    def retain(self, keep: int, written: int) -> None:
        """Keeps the last `keep` checkpoints, that of the smallest held-out loss and that of step `written`."""
        here = {step_of(path): path for path in self.all_checkpoints()}
        losses = {}
        for record in self.records(self.metrics):
            if record["step"] in here and record.get("held_out_loss") is not None:
                losses[record["step"]] = record["held_out_loss"]
        best = min(losses, key=losses.__getitem__, default=None)
        for step in sorted(here)[:-keep]:
            if step not in (best, written):
                here[step].unlink()
                pilots_path(here[step]).unlink(missing_ok=True)
                calibrated_path(here[step]).unlink(missing_ok=True)

    def newest_checkpoint(self, set_aside: bool = False) -> checkpoint.Checkpoint | None:
        """The last checkpoint that can be read, None if there is none; damaged ones are named and passed over.

        With `set_aside`, those that are passed over for an earlier one are renamed, so that they count no more.
        """
        damaged: list[Path] = []
        newest = None
        for path in reversed(self.all_checkpoints()):
            try:
                newest = checkpoint.load(path)
                break
            except UsageError as error:
                damaged.append(path)
                print(f"skipped: {error}", flush=True)
        if newest is not None and set_aside:
            for path in damaged:
                path.replace(renamed := path.with_name(f"{path.name}.damaged"))
                print(f"skipped: {path.name} is now {renamed.name}", flush=True)
        return newest

    def cut_after(self, step: int) -> None:
        """Drops lines of metrics and timings, and snapshots, after a step: a continued run writes them anew."""
        for path in (self.metrics, self.timings):
            if path.exists():
                kept = [record for record in self.records(path) if record["step"] <= step]
                write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        for path in self.all_snapshots():
            if step_of(path) > step:
                path.unlink()

    @staticmethod
    def records(path: Path) -> list[dict[str, Any]]:
        """The lines of a log, none if there is no file. Lines that are damaged are left out and counted.

        The half line at the end of a run that was killed is left out without a word.
        """
        if not path.exists():
            return []
        with naming(path):
            lines = path.read_bytes().splitlines(keepends=True)
        found = []
        damaged = 0
        for line in lines:
            try:
                record = json.loads(line)
                step = record["step"]
            except (ValueError, KeyError, TypeError):
                damaged += line.endswith(b"\n")
                continue
            if type(step) is int:
                found.append(record)
            else:
                damaged += 1
        if damaged:
            print(f"skipped: {damaged} damaged lines of {path}", flush=True)
        return found

    @staticmethod
    def append(path: Path, record: dict[str, Any]) -> None:
        """Adds one line of JSON to a log."""
        with naming(path), open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or a snapshot of a run."""
    return int(path.stem.removeprefix("step-"))


def newest_run(root: Path) -> RunFolder:
    """The run of a score model under `root` whose checkpoint was written last."""
    runs = score_runs(root)
    require(bool(runs), f"workdir: nothing is trained yet under {str(root)!r}; {HOW_TO_TRAIN}")
    return max(runs, key=lambda run: run.all_checkpoints()[-1].stat().st_mtime)


def score_runs(root: Path) -> list[RunFolder]:
    """The runs under `root` that have checkpoints, other than those of classifiers."""
    runs = [RunFolder(path) for path in root.glob("*/")]
    return [run for run in runs if run.all_checkpoints() and not _is_of_classifier(run.all_checkpoints()[-1])]


def _is_of_classifier(path: Path) -> bool:
    """Whether a file is known to hold no score model; one that cannot be read is not."""
    try:
        return SCORE not in checkpoint.read_header(path)["models"]
    except (UsageError, OSError):
        return False


def checkpoint_at(given: str, flag: str) -> Path:
    """The checkpoint that a flag names: a file, or the newest of a run's folder.

    Raises:
        UsageError: for a path that is neither.
    """
    path = Path(given)
    require(path.exists(), f"{flag}={given!r}: no such file or folder; give a checkpoint, or the folder of a run")
    if not path.is_dir():
        return path
    found = RunFolder(path).all_checkpoints()
    require(bool(found), f"{flag}={given!r}: a folder without checkpoints; give that of a run, or a checkpoint")
    return found[-1]

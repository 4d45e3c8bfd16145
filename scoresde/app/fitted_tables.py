"""The tables of `--sampler auto`: those of a pilot run, and in their place those that were calibrated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samplers import FittedSampler, fit_sampler
from samplers.fitted.pilot import NUM_EVALUATIONS, REVISION
from samplers.fitted.reference import NUM_SAMPLES
from samplers.fitted.tables import FittedTable
from scoresde._files import write_text
from scoresde._json import parse_json
from scoresde.app.device import choose_threads
from scoresde.app.pilot_cache import PilotCache, calibrated_path
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.errors import UsageError, machine_error, require


def pilot_tables(trained: Trained, leader: bool = True) -> FittedSampler:
    """The tables of a pilot run, which is made once and kept beside the checkpoint.

    Args:
        trained: whose tables.
        leader: whether this process writes and speaks.
    """
    model = trained.model
    choose_threads(NUM_SAMPLES * math.prod(model.shape))

    def search() -> Any:
        with Progress("pilot", NUM_EVALUATIONS, unit="evaluations", shown=leader) as progress:
            cond = trained.conditions(NUM_SAMPLES)
            return fit_sampler(model, cond, progress.advance, trained.batch_size()).to_json()

    def valid(found: Any) -> bool:
        try:
            FittedSampler.from_json(found)
        except ValueError:
            return False
        return True

    settings = trained.sampling_key() | {"revision": REVISION}
    found = PilotCache(trained.checkpoint).find("tables", settings, search, valid, leader)
    if leader:
        print("auto: tables fitted to this model by a pilot run", flush=True)
    return FittedSampler.from_json(found)


def best_tables(trained: Trained, leader: bool = True) -> tuple[FittedSampler, list[int]]:
    """The pilot's tables with the calibrated ones in their place, and the numbers of evaluations of these."""
    tables = dict(pilot_tables(trained, leader).tables)
    better = read_calibrated(trained)
    return FittedSampler(tables | better), sorted(better)


def read_calibrated(trained: Trained) -> dict[int, FittedTable]:
    """The calibrated tables of a checkpoint, by number of evaluations; none if none were made with these settings.

    Raises:
        UsageError: for a file that is damaged, or of other weights.
    """
    path = calibrated_path(trained.checkpoint.path)
    remedy = "remove it, or run --mode calibrate"
    try:
        content = parse_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {remedy}") from error
    require(isinstance(content, dict), f"{path}: does not hold tables; {remedy}")
    key = content.get("key")
    of_these_weights = isinstance(key, Mapping) and key.get("digest") == trained.checkpoint.digest
    require(of_these_weights, f"{path}: was calibrated for another model; {remedy}")
    if key != trained.sampling_key():
        return {}
    try:
        return dict(FittedSampler.from_json(content.get("tables")).tables)
    except ValueError as error:
        raise UsageError(f"{path}: {error}; {remedy}") from error


def write_calibrated(trained: Trained, tables: Mapping[int, FittedTable]) -> Path:
    """Keeps calibrated tables beside the checkpoint, and returns where."""
    path = calibrated_path(trained.checkpoint.path)
    record = {"key": trained.sampling_key(), "tables": FittedSampler(tables).to_json()}
    try:
        write_text(path, json.dumps(record, indent=1))
    except OSError as error:
        raise UsageError(f"{machine_error(error)}; or copy the checkpoint to a folder of yours") from error
    return path

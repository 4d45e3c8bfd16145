"""The tables of `--sampler auto`: those of a pilot run, and in their place those that were calibrated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from samplers import FittedSampler, pilot
from samplers.fitted.pilot import NUM_EVALUATIONS, REVISION
from samplers.fitted.reference import NUM_SAMPLES
from samplers.fitted.tables import FittedTable
from scoresde._json import parse_json
from scoresde.app.device import choose_threads
from scoresde.app.pictures import demo_labels
from scoresde.app.pilot_cache import PilotCache, calibrated_path
from scoresde.app.progress import Progress
from scoresde.app.run_folder import write_text
from scoresde.checkpoint import Checkpoint
from scoresde.errors import UsageError, require
from scoresde.score_model import ScoreModel


def fitted_tables(
    model: ScoreModel, checkpoint: Checkpoint, config: ConfigDict, leader: bool, calibrated: bool
) -> tuple[FittedSampler, list[int]]:
    """The tables of a pilot run, which is made once and kept beside the checkpoint, and those that are calibrated.

    Args:
        model, checkpoint, config: of which; the model is the checkpoint's as it is sampled from.
        leader: whether this process writes and speaks.
        calibrated: whether calibrated tables take the place of the pilot's.

    Returns:
        The tables, and the numbers of evaluations that are calibrated.
    """
    choose_threads(NUM_SAMPLES * math.prod(model.shape))
    labels = demo_labels(NUM_SAMPLES, checkpoint.description["data"]["num_classes"])

    def search() -> Any:
        with Progress("pilot", NUM_EVALUATIONS, unit="evaluation", shown=leader) as progress:
            return pilot(model, labels, lambda done: progress.update(done)).to_json()

    def valid(found: Any) -> bool:
        try:
            FittedSampler.from_json(found)
        except ValueError:
            return False
        return True

    settings = _settings(config) | {"revision": REVISION}
    fits = dict(FittedSampler.from_json(PilotCache(checkpoint).find("tables", settings, search, valid, leader)).fits)
    if leader:
        print("auto: tables fitted to this model by a pilot run", flush=True)
    better = read_calibrated(checkpoint, config) if calibrated else {}
    return FittedSampler(fits | better), sorted(better)


def _settings(config: ConfigDict) -> dict[str, Any]:
    """What of the configuration changes the model that is sampled from."""
    return {"threshold": config.sampling.threshold, "quantile": config.sampling.quantile}


def read_calibrated(checkpoint: Checkpoint, config: ConfigDict) -> dict[int, FittedTable]:
    """The calibrated fits of a checkpoint, by number of evaluations; none where none were made with these settings.

    Raises:
        UsageError: for a file that is damaged, or of other weights.
    """
    path = calibrated_path(checkpoint.path)
    remedy = "remove it, or run --mode calibrate, or give --calibrated=off"
    try:
        kept = parse_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {remedy}") from error
    require(isinstance(kept, dict), f"{path}: holds no tables; {remedy}")
    of_these_weights = kept.get("digest") == checkpoint.description["digest"]
    require(of_these_weights, f"{path}: was calibrated for another model; {remedy}")
    if kept.get("settings") != _settings(config):
        return {}
    try:
        fits = FittedSampler.from_json(kept.get("tables")).fits
    except ValueError as error:
        raise UsageError(f"{path}: {error}; {remedy}") from error
    return dict(fits)


def write_calibrated(checkpoint: Checkpoint, config: ConfigDict, fits: dict[int, FittedTable]) -> Path:
    """Keeps calibrated fits beside the checkpoint, and returns where."""
    path = calibrated_path(checkpoint.path)
    record = {"digest": checkpoint.description["digest"], "settings": _settings(config)}
    try:
        write_text(path, json.dumps(record | {"tables": FittedSampler(fits).to_json()}, indent=1))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); copy the checkpoint to a folder of yours") from error
    return path

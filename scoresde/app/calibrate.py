"""`--mode calibrate`: tables of few evaluations, fitted to a trained model, which `--sampler auto` then takes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict

from samplers.fitted.calibrate import ITERATIONS, LEAST_NOISES
from samplers.fitted.calibrate import calibrate as calibrated_table
from samplers.fitted.pilot import NUM_STEPS
from samplers.fitted.reference import DENSE, Coupling, reference_coupling, trimmed_error
from scoresde.app.compare import GOOD
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import fitted_tables, read_calibrated, write_calibrated
from scoresde.app.pictures import demo_labels
from scoresde.app.progress import Progress
from scoresde.app.sample import scaling_of
from scoresde.checkpoint import Checkpoint
from scoresde.errors import UsageError, require
from scoresde.score_model import ScoreModel
from sde_configs import build

COUNTS = (5, 6, 8, 10)
NUM_NOISES = 640
BATCH = 64


def calibrate(
    checkpoint: Checkpoint,
    config: ConfigDict,
    counts: Sequence[int],
    *,
    num_noises: int,
    seed: int,
    device: torch.device,
) -> int:
    """Calibrates the tables of some numbers of evaluations, and keeps each beside the checkpoint as it is found."""
    require(
        num_noises >= LEAST_NOISES,
        f"num_samples={num_noises}: calibration learns from so many noises, and needs at least {LEAST_NOISES}",
    )
    for count in counts:
        require(count in NUM_STEPS, f"num_steps={count}: need {NUM_STEPS[0]} to {NUM_STEPS[-1]}")
    folder = checkpoint.path.parent
    require(os.access(folder, os.W_OK), f"checkpoint: the tables are kept in {folder}, which cannot be written to")
    data = checkpoint.description["data"]
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(data), data["low"], data["high"]
    )
    fitted, _ = fitted_tables(model, checkpoint, config, leader=True, calibrated=False)
    choose_threads(BATCH * math.prod(model.shape))
    truth = _truth(model, next(iter(fitted.fits.values())).sd, num_noises, seed, data["num_classes"])
    try:
        kept = read_calibrated(checkpoint, config)
    except UsageError:  # of other weights, or damaged: it is written anew
        kept = {}
    for count in counts:
        began = time.monotonic()
        with Progress(f"calibrate {count}", ITERATIONS, unit="iteration") as progress:

            def tell(iteration: int, error: float, progress: Progress = progress) -> None:
                progress.update(iteration, f"error {error:.2g}")

            sampler, before, after = calibrated_table(
                model, fitted, count, truth, seed=seed, batch_size=BATCH, tell=tell
            )
        if after < before:
            kept[count] = sampler.fits[count]
            path = write_calibrated(checkpoint, config, kept)
            gain = f"error {before:.2g} -> {after:.2g} on noises held out"
            print(f"{count} evaluations: {gain}, {time.monotonic() - began:.0f} s; kept in {path}", flush=True)
        else:
            print(f"{count} evaluations: error {before:.2g}; nothing better was found, the table stays", flush=True)
    if kept:
        print("--sampler auto takes the tables that are kept, at their numbers of evaluations: --num_steps N")
    return 0


def _truth(model: ScoreModel, scale: float, num_noises: int, seed: int, num_classes: int) -> Coupling:
    """The ends of the flow from noises that no other mode takes; raises `UsageError` where the flow does not converge.

    It is followed twice from the first batch, to see how far it is off.
    """
    seed, labels = seed + 1_000_003, demo_labels(num_noises, num_classes)
    some = demo_labels(BATCH, num_classes)
    with Progress("truth", -(-num_noises // BATCH) * DENSE + DENSE // 2, unit="evaluation") as progress:
        rough = reference_coupling(model, scale, some, BATCH, seed, DENSE // 2, BATCH, progress.advance)
        truth = reference_coupling(model, scale, labels, num_noises, seed, DENSE, BATCH, progress.advance)
    doubt = trimmed_error(rough.end, truth.end[:BATCH])
    require(
        doubt < GOOD * scale,
        f"checkpoint: its probability flow did not converge; ends after {DENSE // 2} and {DENSE} evaluations lie "
        f"{doubt:.2g} apart, {100 * doubt / scale:.0f} % of the samples' deviation; train longer, then calibrate",
    )
    print(f"truth: the flow from {num_noises} noises, good to {doubt:.1e}", flush=True)
    return truth

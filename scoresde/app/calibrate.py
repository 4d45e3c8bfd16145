"""`--mode calibrate`: tables of few evaluations, fitted to a trained model, which `--sampler auto` then takes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

from samplers import FittedSampler, reference_coupling
from samplers.fitted.calibrate import ITERATIONS, MIN_NOISES, graphs_kept
from samplers.fitted.calibrate import calibrate as calibrated_table
from samplers.fitted.pilot import NUM_STEPS
from samplers.fitted.reference import DENSE, Coupling, trimmed_error
from samplers.fitted.tables import FittedTable
from scoresde.app.compare import GOOD
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import pilot_tables, read_calibrated, write_calibrated
from scoresde.app.flags import CalibrateFlags
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.errors import UsageError, require

COUNTS = (5, 6, 8, 10)
DOUBTED = 64  # noises from which the flow is followed twice, to see how far it has converged
OTHER_NOISES = 1_000_003  # added to the seed: calibration learns from noises that no other mode takes


def calibrate(flags: CalibrateFlags, overrides: Sequence[str]) -> int:
    """Calibrates the tables of some numbers of evaluations, and keeps each beside the checkpoint as it is found."""
    trained = Trained.of(flags, overrides)
    require(
        flags.num_samples >= MIN_NOISES,
        f"num_samples={flags.num_samples}: calibration learns from this many noises, and needs at least {MIN_NOISES}",
    )
    counts = COUNTS if flags.num_steps is None else (flags.num_steps,)
    for count in counts:
        require(count in NUM_STEPS, f"num_steps={count}: need {NUM_STEPS[0]} to {NUM_STEPS[-1]}")
    folder = trained.checkpoint.path.parent
    require(os.access(folder, os.W_OK), f"checkpoint: the tables are kept in {folder}, which cannot be written to")
    fitted = pilot_tables(trained)
    choose_threads(trained.batch_size(graphs=1) * math.prod(trained.model.shape))
    coupling = _reference(trained, next(iter(fitted.tables.values())).sigma_data, flags.num_samples)
    try:
        tables = read_calibrated(trained)
    except UsageError:  # of other weights, or damaged: the file is written anew
        tables = {}
    for count in counts:
        _calibrate_one(trained, fitted, count, coupling, tables)
    if tables:
        print("--sampler auto takes the tables that are kept, at their numbers of evaluations: --num_steps N")
    return 0


def _calibrate_one(
    trained: Trained, fitted: FittedSampler, count: int, coupling: Coupling, tables: dict[int, FittedTable]
) -> None:
    """Calibrates the table of one number of evaluations; a better one joins `tables`, and all are written."""
    began = time.monotonic()
    with Progress(f"calibrate {count}", ITERATIONS, unit="iterations") as progress:
        sampler, before, after = calibrated_table(
            trained.model,
            fitted,
            count,
            coupling,
            seed=trained.seed,
            batch_size=trained.batch_size(graphs_kept(trained.model, count)),
            on_iteration=lambda error: progress.update(progress.count + 1, f"error {error:.2g}"),
        )
    if after < before:
        tables[count] = sampler.tables[count]
        path = write_calibrated(trained, tables)
        gain = f"error {before:.2g} -> {after:.2g} on noises held out"
        print(f"{count} evaluations: {gain}, {time.monotonic() - began:.0f} s; kept in {path}", flush=True)
    else:
        print(f"{count} evaluations: error {before:.2g}; nothing better was found, the table stays", flush=True)


def _reference(trained: Trained, deviation: float, num_noises: int) -> Coupling:
    """Noises that no other mode takes, and where the flow leads from them.

    The flow is followed twice from the first of them, to see how far it has converged.

    Raises:
        UsageError: if it has not.
    """
    model = trained.model
    seed = trained.seed + OTHER_NOISES
    size = trained.batch_size()
    total = -(-num_noises // size) * DENSE + -(-DOUBTED // size) * (DENSE // 2)
    with Progress("reference", total, unit="evaluations") as progress:
        rough, coupling = (
            reference_coupling(
                model, deviation, trained.conditions(count), count, seed, evaluations, size, progress.advance
            )
            for count, evaluations in ((DOUBTED, DENSE // 2), (num_noises, DENSE))
        )
    doubt = trimmed_error(rough.x_0, coupling.x_0[:DOUBTED])
    require(
        doubt < GOOD * deviation,
        f"checkpoint: its probability flow did not converge; ends after {DENSE // 2} and {DENSE} evaluations lie "
        f"{doubt:.2g} apart, {100 * doubt / deviation:.0f} % of the samples' deviation; train longer, then calibrate",
    )
    print(f"reference: the flow from {num_noises} noises, good to {doubt:.1e}", flush=True)
    return coupling

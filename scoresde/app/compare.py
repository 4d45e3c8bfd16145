"""`--mode compare`: which sampler, and how many steps, for a trained model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import (
    DDIM,
    DPMSolver,
    FittedSampler,
    Heun,
    TableSampler,
    Trigonometric,
    UniPC,
    karras,
    reference_coupling,
    vp_quadratic,
)
from samplers.fitted.reference import Coupling, trimmed_error
from scoresde import plots
from scoresde._files import MARK, write_text
from scoresde.app.device import choose_threads
from scoresde.app.files import output_path
from scoresde.app.fitted_tables import best_tables
from scoresde.app.flags import CompareFlags
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.errors import require
from scoresde.models.split import SplitModel
from scoresde.score_model import ScoreModel

COUNTS = (5, 6, 8, 10, 15, 20, 35, 50)
REFERENCE = 256
GOOD = 0.02  # an error of this share of the samples' deviation is hard to see


class Solver(NamedTuple):
    """A sampler to compare, and its grid for a number of evaluations."""

    sampler: TableSampler
    grid: Callable[[ScoreModel, int], Tensor]


class Measured(NamedTuple):
    """What was measured of each sampler, over `COUNTS`; NaN if it takes no such number of evaluations."""

    errors: dict[str, list[float]]
    seconds: dict[str, list[float]]


def solvers(fitted: FittedSampler) -> dict[str, Solver]:
    """The samplers that are compared."""
    return {
        "auto": Solver(fitted, fitted.grid),
        "trigonometric": Solver(Trigonometric(2), Trigonometric(2).grid),
        "unipc": Solver(UniPC(2), lambda model, count: vp_quadratic(model.sde, count)),
        "dpm_solver": Solver(DPMSolver(2), DPMSolver(2).grid),
        "ddim": Solver(DDIM(), DDIM().grid),
        "heun": Solver(Heun(), lambda model, count: karras(model.sde, (count + 1) // 2)),
    }


@torch.no_grad()
def compare(flags: CompareFlags, overrides: Sequence[str]) -> int:
    """Prints a table of errors and times over evaluations, writes it as a picture and JSON, and recommends.

    The error is the distance of a sample from where the converged probability flow leads from the same noise, as RMS
    over its entries and over all samples without the worst 3 of 100.
    """
    trained = Trained.of(flags, overrides)
    count = flags.num_samples
    require(count >= 10, f"num_samples={count}: need at least 10")
    output = output_path(flags.output, trained.folder / "compare.png", ".json")
    model = trained.model
    choose_threads(count * math.prod(model.shape))
    fitted, calibrated = best_tables(trained)
    if calibrated:
        print(f"auto: calibrated at {', '.join(map(str, calibrated))}")
    cond = trained.conditions(count)
    deviation = next(iter(fitted.tables.values())).sigma_data
    size = trained.batch_size()
    with Progress("reference", -(-count // size) * (REFERENCE + REFERENCE // 2), unit="evaluations") as progress:
        coupling, rough = (
            reference_coupling(model, deviation, cond, count, 1, evaluations, size, progress.advance)
            for evaluations in (REFERENCE, REFERENCE // 2)
        )
    doubt = trimmed_error(rough.x_0, coupling.x_0)
    measured = _measure(SplitModel(model, size), coupling, solvers(fitted))
    _report(measured, deviation, doubt)
    figure = plots.error_curves(COUNTS, measured.errors, doubt, ("network evaluations", "error, in units of the model"))
    plots.save(figure, output, dpi=120)
    record = {
        "comment": MARK,
        "evaluations": COUNTS,
        "errors": measured.errors,
        "seconds_a_sample": measured.seconds,
        "deviation": deviation,
        "reference_good_to": doubt,
    }
    write_text(output.with_suffix(".json"), json.dumps(record, indent=1).replace("NaN", "null"))
    print(f"picture: {output}\nnumbers: {output.with_suffix('.json')}")
    return 0


def _measure(model: ScoreModel, coupling: Coupling, compared: Mapping[str, Solver]) -> Measured:
    """Runs each sampler at each number of evaluations."""
    errors: dict[str, list[float]] = {name: [] for name in compared}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    with Progress("compare", sum(COUNTS) * len(compared), unit="evaluations") as progress, model.eval_mode():
        for count in COUNTS:
            for name, (sampler, grid) in compared.items():
                table = sampler.table(model, grid(model, count))
                error = taken = math.nan
                if len(table) == count:  # Heun takes an odd number
                    began = time.perf_counter()
                    x = coupling.run(table, model)
                    error = trimmed_error(x, coupling.x_0)  # waits for the device
                    taken = (time.perf_counter() - began) / len(x)
                errors[name].append(error)
                seconds[name].append(taken)
                progress.update(progress.count + count)
    return Measured(errors, seconds)


def _report(measured: Measured, deviation: float, doubt: float) -> None:
    """The table and what it recommends."""
    errors = measured.errors
    print(f"error against the converged flow, which is good to {doubt:.1e}; the samples' deviation is {deviation:.2g}")
    print("evaluations".rjust(14) + "".join(f"{count:>10}" for count in COUNTS))
    for name, values in errors.items():
        print(name.rjust(14) + "".join(f"{'-' if math.isnan(v) else format(v, '.2g'):>10}" for v in values))
    print("ms a sample".rjust(14) + "".join(f"{1e3 * s:>10.2g}" for s in measured.seconds["auto"]))
    if doubt > GOOD * deviation:
        print("the flow of this model did not converge: errors below that of the reference mean nothing; train longer")
        return
    for place, count in enumerate(COUNTS):
        best = min(errors, key=lambda name: math.inf if math.isnan(errors[name][place]) else errors[name][place])
        if errors[best][place] < GOOD * deviation:
            share = 100 * errors[best][place] / deviation
            print(f"recommended: --sampler {best} --num_steps {count}, with an error of {share:.1f} % of the deviation")
            return
    print("recommended: --sampler ode; no number of steps above comes within 2 % of the deviation")

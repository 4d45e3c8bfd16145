"""`--mode compare`: which sampler, and how many steps, for a trained model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ml_collections import ConfigDict
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
    phi_to_clean,
    uniform_log_snr,
    vp_quadratic,
)
from samplers.fitted.reference import Coupling, reference_coupling, trimmed_error
from samplers.table import Loop
from scoresde import Noise, plots
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import fitted_tables
from scoresde.app.pictures import demo_labels
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder, write_text
from scoresde.app.sample import scaling_of
from scoresde.checkpoint import Checkpoint
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE
from sde_configs import build

COUNTS = (5, 6, 8, 10, 15, 20, 35, 50)
TRUTH, BATCH = 256, 64  # evaluations of the run that the others are measured against, and the size of its batches
GOOD = 0.02  # an error of so much of the samples' deviation is hard to see


def solvers(fitted: FittedSampler, scale: float) -> dict[str, tuple[TableSampler, Callable[[SDE, int], Tensor]]]:
    """The samplers that are compared, for samples of a deviation, each with its grid of some evaluations."""
    return {
        "auto": (fitted, fitted.default_grid),
        "trigonometric": (Trigonometric(2, scale), lambda sde, count: phi_to_clean(sde, count, 1.5, scale)),
        "unipc": (UniPC(2), vp_quadratic),
        "dpm_solver": (DPMSolver(2), uniform_log_snr),
        "ddim": (DDIM(), uniform_log_snr),
        "heun": (Heun(), lambda sde, count: karras(sde, (count + 1) // 2)),
    }


@torch.no_grad()
def compare(
    checkpoint: Checkpoint,
    config: ConfigDict,
    output: Path,
    *,
    num_samples: int,
    device: torch.device,
    calibrated: bool = True,
) -> int:
    """Prints a table of errors and times over evaluations, writes it as a picture and JSON, and recommends.

    The error is the distance of a sample from where the converged probability flow leads from the same noise, as RMS
    over its entries and over all samples without the worst 3 of 100.
    """
    require(num_samples >= 10, f"num_samples={num_samples}: need at least 10")
    make_folder(output.parent, "output", output)
    data = checkpoint.description["data"]
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(data), data["low"], data["high"]
    )
    choose_threads(num_samples * math.prod(model.shape))
    fitted, counts = fitted_tables(model, checkpoint, config, True, calibrated)
    if counts:
        print(f"auto: calibrated at {', '.join(map(str, counts))} (--calibrated=off takes the pilot's tables)")
    labels, scale = demo_labels(num_samples, data["num_classes"]), next(iter(fitted.fits.values())).sd
    with Progress("truth", -(-num_samples // BATCH) * (TRUTH + TRUTH // 2), unit="evaluation") as progress:
        truth, rough = (
            reference_coupling(model, scale, labels, num_samples, 1, evaluations, BATCH, progress.advance)
            for evaluations in (TRUTH, TRUTH // 2)
        )
    doubt = trimmed_error(rough.end, truth.end)
    errors, seconds = _measure(model, truth, solvers(fitted, scale))
    _report(errors, seconds, scale, doubt)
    figure = plots.error_curves(COUNTS, errors, doubt, ("network evaluations", "error, in units of the model"))
    figure.savefig(output, dpi=120)
    record = {
        "evaluations": COUNTS,
        "errors": errors,
        "seconds_a_sample": seconds,
        "deviation": scale,
        "truth_good_to": doubt,
    }
    write_text(output.with_suffix(".json"), json.dumps(record, indent=1).replace("NaN", "null"))
    print(f"picture: {output}\nnumbers: {output.with_suffix('.json')}")
    return 0


def _measure(
    model: ScoreModel, truth: Coupling, compared: Mapping[str, tuple[TableSampler, Callable[[SDE, int], Tensor]]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """For each sampler its errors and its seconds a sample; NaN where it takes no such number of evaluations."""
    noise = Noise(1, torch.arange(len(truth.start)))  # none of them draws any
    errors: dict[str, list[float]] = {name: [] for name in compared}
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    with Progress("compare", sum(COUNTS) * len(compared), unit="evaluation") as progress, model.eval_mode():
        for count in COUNTS:
            for name, (sampler, grid) in compared.items():
                table = sampler.table(model.sde, grid(model.sde, count))
                error = taken = math.nan
                if len(table) == count:  # Heun takes an odd number
                    began = time.perf_counter()
                    x_T = truth.start_of(table, model.sde)
                    x = Loop(table, model, x_T)(x_T, noise, truth.cond)
                    error = trimmed_error(x, truth.end)  # waits for the device
                    taken = (time.perf_counter() - began) / len(x)
                errors[name].append(error)
                seconds[name].append(taken)
                progress.update(progress.count + count)
    return errors, seconds


def _report(errors: dict[str, list[float]], seconds: dict[str, list[float]], scale: float, doubt: float) -> None:
    """The table and what it recommends."""
    print(f"error against the converged flow, which is good to {doubt:.1e}; the samples' deviation is {scale:.2g}")
    print("evaluations".rjust(14) + "".join(f"{count:>10}" for count in COUNTS))
    for name, values in errors.items():
        print(name.rjust(14) + "".join(f"{'-' if math.isnan(v) else format(v, '.2g'):>10}" for v in values))
    print("ms a sample".rjust(14) + "".join(f"{1e3 * s:>10.2g}" for s in seconds["auto"]))
    if doubt > GOOD * scale:
        print("the flow of this model did not converge: errors below that of the truth mean nothing; train longer")
        return
    for place, count in enumerate(COUNTS):
        best = min(errors, key=lambda name: math.inf if math.isnan(errors[name][place]) else errors[name][place])
        if errors[best][place] < GOOD * scale:
            share = 100 * errors[best][place] / scale
            print(f"recommended: --sampler {best} --num_steps {count}, with an error of {share:.1f} % of the deviation")
            return
    print("recommended: --sampler ode; no number of steps above comes within 2 % of the deviation")

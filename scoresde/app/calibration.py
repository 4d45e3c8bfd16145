"""How far the posteriors of a method can be trusted: by simulated measurements of held-out samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from scoresde import condition
from scoresde.app.flags import SolveFlags
from scoresde.app.methods import DEFAULT_SAMPLER, METHODS, Solver
from scoresde.app.pilot_cache import PilotCache
from scoresde.app.progress import Progress
from scoresde.app.tasks import Task, task_key
from scoresde.app.trained import Trained
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require
from scoresde.metrics.calibration import energy_score, histogram, interval_coverage, ranks, region_coverage
from scoresde.noise import key_of

SAMPLES = 19  # of each case: 18 of the 20 ranks are exactly 90 %
PILOT_CASES = 16
REVISION = 2  # of what is measured: what was kept of another is not used
BARS = "▁▂▃▄▅▆▇█"


@final
@dataclass(frozen=True)
class Calibration:
    """What simulated measurements show.

    Attributes:
        cases: how many.
        intervals, regions: coverage of nominal 90 %, and its standard error.
        along, distances: shares of the ranks, of intervals and of regions.
        energy: the mean energy score, in units of the data.
    """

    cases: int
    intervals: tuple[float, float]
    regions: tuple[float, float]
    along: tuple[float, ...]
    distances: tuple[float, ...]
    energy: float

    def lines(self) -> list[str]:
        """What is said of them."""
        both = (self.intervals, self.regions)
        intervals, regions = (f"{100 * value:.0f} ({100 * error:.0f}) %" for value, error in both)
        return [
            f"calibration: 90 % intervals hold {intervals} of the truths, 90 % regions {regions}, in {self.cases} "
            "held-out cases",
            f"ranks of the truth, flat if calibrated: {bars(self.along)}  of its distance: {bars(self.distances)}",
        ]


def bars(shares: tuple[float, ...], columns: int = 10) -> str:
    """Shares of ranks as a line of bars."""
    groups = torch.tensor(shares).chunk(columns)
    heights = torch.stack([group.mean() for group in groups])
    levels = (heights / heights.max() * (len(BARS) - 1)).round().long()
    return "".join(BARS[k] for k in levels.tolist())


def simulate(task: Task, data: ArrayData, count: int, seed: int) -> tuple[Tensor, condition.Condition, Tensor]:
    """Data, their conditions and their measurements: the first ones."""
    x, cond = replace(data, codec=task.codec).batch(slice(0, count))
    with torch.no_grad():
        clean = task.operator(x)
    # a generator for each, so that a measurement does not depend on how many follow it
    draws = (torch.Generator().manual_seed(key_of(seed, "measurement", k)) for k in range(len(clean)))
    noisy = [task.noise.add(part, generator) for part, generator in zip(clean, draws, strict=True)]
    return x, cond, torch.stack(noisy)


def calibrate(task: Task, flags: SolveFlags, solver: Solver, held_out: ArrayData) -> Calibration:
    """The calibration of a solver, by as many held-out samples as asked for; kept beside the checkpoint."""
    trained = task.trained
    cases = min(flags.cases, len(held_out))

    def search() -> Any:
        truth, samples = _simulated(task, solver, held_out, cases, "calibrate")
        found = ranks(truth, samples)
        along, distances = histogram(found)
        return {
            "cases": cases,
            "intervals": list(interval_coverage(found)),
            "regions": list(region_coverage(found)),
            "along": along.tolist(),
            "distances": distances.tolist(),
            "energy": energy_score(truth, samples).mean().item(),
        }

    settings = _settings(trained, flags) | {
        "solver": [solver.name, str(solver.sampler), solver.num_steps, solver.particles],
        "cases": cases,
    }
    kept = PilotCache(trained.checkpoint).find("posterior", settings, search, _is_calibration)
    return _of_json(kept)


def choose_method(task: Task, flags: SolveFlags, held_out: ArrayData | None) -> str:
    """The method with the smallest energy score in a pilot run, of those that can take the task; kept.

    Raises:
        UsageError: without held-out samples, or a method that can take the task.
    """
    if held_out is None:
        raise UsageError("method='auto': needs held-out samples; name a method, as in --method mmps")
    solvers = {}
    refused = ""
    for name in METHODS:
        try:
            solvers[name] = Solver.of(task, flags, name)
        except UsageError as error:
            refused = str(error)
    require(len(solvers) > 0, f"method='auto': none can take this task ({refused})")

    def search() -> Any:
        cases = min(PILOT_CASES, len(held_out))
        scores = {}
        for name, solver in solvers.items():
            truth, samples = _simulated(task, solver, held_out, cases, f"try {name}")
            scores[name] = energy_score(truth, samples).mean().item()
        return {"scores": scores}

    def valid(found: Any) -> bool:
        scores = found.get("scores") if isinstance(found, dict) else None
        return isinstance(scores, dict) and scores.keys() == solvers.keys()

    trained = task.trained
    settings = _settings(trained, flags) | {"methods": sorted(solvers), "num_steps": flags.num_steps}
    scores = PilotCache(trained.checkpoint).find("method", settings, search, valid)["scores"]
    best = min(scores, key=lambda name: scores[name])
    listed = ", ".join(f"{name} {score:.3g}" for name, score in sorted(scores.items(), key=lambda item: item[1]))
    print(f"method {best} (smallest energy score in a pilot run: {listed})", flush=True)
    return str(best)


def _simulated(task: Task, solver: Solver, held_out: ArrayData, cases: int, label: str) -> tuple[Tensor, Tensor]:
    """Truths and samples of the posteriors of their measurements, as data, on the host."""
    seed = task.trained.seed
    x, cond, y = simulate(task, held_out, cases, seed)
    with Progress(label, solver.total(cases, SAMPLES), unit="evaluations") as progress:
        drawn = solver.draw(y, cond, SAMPLES, seed, callback=lambda *_: progress.advance())
    return x, task.data_of(drawn.x)


def _settings(trained: Trained, flags: SolveFlags) -> dict[str, Any]:
    return (
        trained.sampling_key()
        | task_key(flags, trained)
        | {
            "revision": REVISION,
            "sampler": flags.sampler,
            "seed": trained.seed,
            "method": trained.config.sampling.method.to_dict(),
            "options": dict(trained.config.sampling.get(flags.sampler or DEFAULT_SAMPLER, {})),
        }
    )


def _is_calibration(found: Any) -> bool:
    try:
        return bool(_of_json(found).along)
    except (KeyError, TypeError, ValueError):
        return False


def _of_json(found: Any) -> Calibration:
    def numbers(name: str) -> tuple[float, ...]:
        return tuple(map(float, found[name]))

    intervals = numbers("intervals")
    regions = numbers("regions")
    return Calibration(
        int(found["cases"]),
        (intervals[0], intervals[1]),
        (regions[0], regions[1]),
        numbers("along"),
        numbers("distances"),
        float(found["energy"]),
    )

"""Samplers with numbers that a pilot run finds: the corrections, the variance of ancestral steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from samplers import (
    Ancestral,
    AnnealedLangevin,
    PredictorCorrector,
    Sampler,
    TableSampler,
    choose_snr,
    pilot_corrector,
    pilot_variance,
)
from samplers.langevin import MeasuredSnr
from samplers.pilot_corrector import REVISION as CORRECTIONS_REVISION
from samplers.pilot_corrector import SCHEME
from samplers.pilot_variance import INTERVALS
from samplers.pilot_variance import REVISION as VARIANCE_REVISION
from scoresde.app.pilot_cache import PilotCache
from scoresde.app.trained import Trained
from scoresde.errors import require
from scoresde.reverse import MeasuredVariance
from sde_configs import build

SNR_SAMPLES = 16  # of the run that chooses an snr
LOWEST = 0.05  # in deviations of the data: below it a network's score is too wrong for corrections (docs/guidance.md)


def piloted_sampler(trained: Trained, name: str, num_steps: int | None, leader: bool = True) -> tuple[Sampler, Tensor]:
    """The sampler of a name, with what its configuration leaves to a pilot run, and its grid.

    Findings are kept beside the checkpoint.

    Args:
        trained: what is sampled from.
        name: of the sampler.
        num_steps: of the grid, or None.
        leader: whether this process writes and speaks.
    """
    sampler = build.build_sampler(trained.config, name, num_steps)
    options = trained.config.sampling.get(name, {})
    if isinstance(sampler, PredictorCorrector) and options.get("snr") == 0 and not trained.guiding.is_off:
        sampler = _guided_corrector(name, num_steps, trained, leader)
        return sampler, sampler.grid(trained.model, num_steps)
    grid = sampler.grid(trained.model, num_steps)
    if isinstance(sampler, PredictorCorrector | AnnealedLangevin) and options.get("snr") == 0:
        return _with_snr(sampler, name, grid, trained, leader), grid
    if isinstance(sampler, Ancestral) and options.get("variance") == build.PILOT:
        return replace(sampler, variance=piloted_variance(trained, leader)), grid
    return sampler, grid


def _with_snr(
    sampler: PredictorCorrector | AnnealedLangevin, name: str, grid: Tensor, trained: Trained, leader: bool
) -> TableSampler:
    """The sampler with the snr that a pilot run finds best."""
    settings = trained.sampling_key() | {"sampler": str(sampler), "grid": grid.tolist()}

    def search() -> float:
        if leader:
            print("choosing snr by a pilot run ...", flush=True)
        cond = trained.conditions(SNR_SAMPLES)
        size = trained.batch_size()
        return choose_snr(
            trained.model, lambda snr: replace(sampler, snr=snr), grid, cond, SNR_SAMPLES, batch_size=size
        )

    def valid(found: Any) -> bool:
        return isinstance(found, float) and 0 < found < 1

    snr = PilotCache(trained.checkpoint).find("snr", settings, search, valid, write=leader)
    if leader:
        print(f"snr {snr} (by a pilot run; --config.sampling.{name}.snr=VALUE sets it)", flush=True)
    return replace(sampler, snr=snr)


def _guided_corrector(name: str, num_steps: int | None, trained: Trained, leader: bool) -> PredictorCorrector:
    """The corrections that a pilot run finds to be enough for a guided model."""
    options = trained.config.sampling[name]
    for field in ("corrector_first", "scheme"):
        usual = getattr(PredictorCorrector, field)
        given = options.get(field, usual)
        require(
            given == usual,
            f"config.sampling.{name}.{field}={given!r}: with --guidance a pilot run chooses the corrections; "
            f"give --config.sampling.{name}.snr=VALUE too",
        )
    count = options.get("corrector_steps", 1)
    asked = count if count > 1 else None  # 1, the default, leaves the number to the pilot

    def search() -> Any:
        if leader:
            print("choosing the corrections by a pilot run ...", flush=True)
        cond = trained.every_condition
        size = trained.batch_size()
        found = pilot_corrector(trained.model, cond, num_steps, asked, batch_size=size, lowest=LOWEST)
        assert isinstance(found.snr, MeasuredSnr)
        return {"corrector_steps": found.corrector_steps, "lowest": found.lowest, **asdict(found.snr)}

    def of_json(found: Any) -> PredictorCorrector:
        snr = MeasuredSnr(*(tuple(float(value) for value in found[part]) for part in ("log_snr", "snr")))
        count = int(found["corrector_steps"])
        return PredictorCorrector(Ancestral(), snr, count, scheme=SCHEME, lowest=float(found["lowest"]))

    settings = trained.sampling_key() | {
        "num_steps": num_steps,
        "corrector_steps": asked,
        "revision": CORRECTIONS_REVISION,
    }
    kept = PilotCache(trained.checkpoint).find("corrections", settings, search, _can_be_read_by(of_json), write=leader)
    sampler = of_json(kept)
    if leader:
        print(f"{sampler.corrector_steps} corrections a step (by a pilot run: docs/guidance.md)", flush=True)
    return sampler


def _can_be_read_by(of_json: Callable[[Any], object]) -> Callable[[Any], bool]:
    """Whether what was kept is what a function reads."""

    def valid(found: Any) -> bool:
        try:
            of_json(found)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    return valid


def piloted_variance(trained: Trained, leader: bool = True, intervals: int = INTERVALS) -> MeasuredVariance:
    """The variance of reverse steps that a pilot run measures, the same for all grids; kept beside the checkpoint.

    Args:
        trained: what is sampled from.
        leader: whether this process writes and speaks.
        intervals: as of `pilot_variance`.
    """

    def search() -> Any:
        if leader:
            print("measuring the variance of the steps by a pilot run ...", flush=True)
        size = trained.batch_size()
        return asdict(pilot_variance(trained.model, trained.every_condition, batch_size=size, intervals=intervals))

    settings = trained.sampling_key() | {"revision": VARIANCE_REVISION, "intervals": intervals}
    kept = PilotCache(trained.checkpoint).find("variance", settings, search, _can_be_read_by(_of_json), write=leader)
    return _of_json(kept)


def _of_json(found: Any) -> MeasuredVariance:
    edges = tuple(map(float, found["edges"]))
    log_snr = tuple(map(float, found["log_snr"]))
    if not edges:
        return MeasuredVariance(log_snr, tuple(map(float, found["share"])))
    return MeasuredVariance(log_snr, tuple(tuple(map(float, row)) for row in found["share"]), edges)

"""Samplers with numbers that a pilot run finds: the snr of a corrector, the variance of ancestral steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from samplers import Ancestral, AnnealedLangevin, PredictorCorrector, Sampler, TableSampler, choose_snr, pilot_variance
from samplers.pilot_variance import NUM_SAMPLES, REVISION
from scoresde.app.pilot_cache import PilotCache
from scoresde.app.trained import Trained
from scoresde.reverse import MeasuredVariance
from sde_configs import build

SNR_SAMPLES = 16  # of the run that chooses an snr


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
    grid = sampler.grid(trained.model, num_steps)
    options = trained.config.sampling.get(name, {})
    if isinstance(sampler, PredictorCorrector | AnnealedLangevin) and options.get("snr") == 0:
        return _with_snr(sampler, name, grid, trained, leader), grid
    if isinstance(sampler, Ancestral) and options.get("variance") == build.PILOT:
        return replace(sampler, variance=_variance(trained, leader)), grid
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


def _variance(trained: Trained, leader: bool) -> MeasuredVariance:
    """The variance that a pilot run measures, the same for all grids."""

    def search() -> Any:
        if leader:
            print("measuring the variance of the steps by a pilot run ...", flush=True)
        found = pilot_variance(trained.model, trained.conditions(NUM_SAMPLES), batch_size=trained.batch_size())
        return {"log_snr": list(found.log_snr), "share": list(found.share)}

    def valid(found: Any) -> bool:
        try:
            _of_json(found)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    settings = trained.sampling_key() | {"revision": REVISION}
    return _of_json(PilotCache(trained.checkpoint).find("variance", settings, search, valid, write=leader))


def _of_json(found: Any) -> MeasuredVariance:
    return MeasuredVariance(*(tuple(float(value) for value in found[name]) for name in ("log_snr", "share")))

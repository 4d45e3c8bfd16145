"""Tables that were fitted to one model: by a pilot run (`samplers.pilot`) or by calibration
(`samplers.fitted.calibrate`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import TableSampler
from samplers.integrands import VelocityIntegrand, level_at, sum_table
from samplers.table import Table
from samplers.trigonometric import to_clean
from scoresde.errors import require
from scoresde.sde import SDE


@final
@dataclass(frozen=True)
class FittedTable:
    """A table of a flow's steps in the velocity integrand, the last to clean data.

    Attributes:
        noise_level: `(n,)` of its evaluations, falling; it starts from noise of the first.
        largest: noise level at t_max, under the SDE that it was fitted under.
        sd: of the integrand.
        weights: `(n, k)` of h_k, h_{k-1}, ... in each step (`samplers.integrands.sum_table`).
    """

    noise_level: Tensor
    largest: float
    sd: float
    weights: Tensor

    def table(self, sde: SDE) -> Table:
        level = level_at(sde, self.noise_level)
        return sum_table(VelocityIntegrand(self.sd), level, to_clean(level), self.weights)


@final
@dataclass(frozen=True)
class FittedSampler(TableSampler):
    """Tables fitted to one model, by number of evaluations, with nodes of their own.

    They do not carry over to another model. No noise; one evaluation a step; order 0, as there are no finer steps.
    """

    fits: Mapping[int, FittedTable] = field(repr=False)

    order = 0
    noise = "none"
    default_num_steps = 10

    def default_grid(self, sde: SDE, num_steps: int) -> Tensor:
        """The grid of the table for a number of steps, ending with 0."""
        require(
            num_steps in self.fits,
            f"num_steps={num_steps}: fitted are {min(self.fits)} to {max(self.fits)} steps; Trigonometric() takes any",
        )
        fit = self.fits[num_steps]
        level = fit.noise_level
        first, least = sde.noise_level(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()
        require(
            math.isclose(fit.largest, first, rel_tol=1e-3) and level[-1] >= least * (1 - 1e-3),
            f"sampler: fitted under another SDE, with noise levels from {fit.largest:.4g} to {level[-1]:.2g}; "
            f"{sde} has {first:.4g} to {least:.2g}; fit it to this model, as pilot(model)",
        )
        t = level_at(sde, level).t
        return torch.cat([t, t.new_zeros(1)])

    def table(self, sde: SDE, grid: Tensor) -> Table:
        grid = grids.check_grid(sde, grid)
        own = self.default_grid(sde, len(grid) - 1)
        require(torch.allclose(grid, own, rtol=1e-6, atol=0), "grid: fitted tables have their own; give num_steps")
        return self.fits[len(grid) - 1].table(sde)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            str(n): {
                "largest": fit.largest,
                "sd": fit.sd,
                "noise_level": fit.noise_level.tolist(),
                "weights": fit.weights.tolist(),
            }
            for n, fit in self.fits.items()
        }

    @classmethod
    def from_json(cls, found: Any) -> FittedSampler:
        """The sampler that `to_json` describes; raises `ValueError` for anything else."""
        try:
            fits = {int(n): _fit_of(part) for n, part in found.items()}
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"no fitted tables: {error}") from error
        if not fits or any(len(part.noise_level) != n for n, part in fits.items()):
            raise ValueError("no fitted tables: lengths do not fit")
        return cls(fits)


def _fit_of(part: Mapping[str, Any]) -> FittedTable:
    level, weights = (torch.tensor(part[name], dtype=torch.float64) for name in ("noise_level", "weights"))
    largest, sd = float(part["largest"]), float(part["sd"])
    fits = weights.ndim == 2 and level.shape == weights.shape[:1]
    finite = bool(level.isfinite().all() and weights.isfinite().all()) and all(0 < x < math.inf for x in (largest, sd))
    falls = bool((level > 0).all() and (level.diff() < 0).all() and (level <= largest * (1 + 1e-6)).all())
    if not (fits and finite and falls):
        raise ValueError("no fitted tables: damaged")
    return FittedTable(level, largest, sd, weights)

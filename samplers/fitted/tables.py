"""A sampler whose tables are fitted to one model, by a pilot run or by calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import TableSampler
from samplers.integrands import VelocityIntegrand, sum_table, to_clean
from samplers.table import Table
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE


@final
@dataclass(frozen=True)
class FittedTable:
    """The steps of a table in the velocity integrand; the last step leads to clean data.

    Attributes:
        noise_level: `(n,)` of its evaluations, falling; sampling starts from pure noise at the first.
        largest: noise level at t_max, under the SDE that it was fitted under.
        sigma_data: of the integrand.
        weights: `(n, k)` of h_k, h_{k-1}, ... in each step (`samplers.integrands.sum_table`).
    """

    noise_level: Tensor
    largest: float
    sigma_data: float
    weights: Tensor

    @property
    def integrand(self) -> VelocityIntegrand:
        """The integrand in which its steps are sums."""
        return VelocityIntegrand(self.sigma_data)

    def table(self, sde: SDE) -> Table:
        """The table under an SDE."""
        level = sde.at_noise_level(self.noise_level)
        return sum_table(self.integrand, level, to_clean(level), self.weights)


@final
@dataclass(frozen=True)
class FittedSampler(TableSampler):
    """Tables fitted to one model, by number of evaluations, each with its own nodes.

    They do not carry over to another model. No noise; one evaluation a step; order 0, because there are no finer steps.
    """

    tables: Mapping[int, FittedTable] = field(repr=False)

    order = 0
    noise = "none"
    min_steps = 1
    default_num_steps = 10

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        """The grid of the table for a number of steps, ending with 0."""
        require(
            num_steps in self.tables,
            f"num_steps={num_steps}: tables exist for {min(self.tables)} to {max(self.tables)} steps; Trigonometric() "
            "(--sampler trigonometric) takes any number",
        )
        fitted = self.tables[num_steps]
        first, least = model.sde.span().noise_level.tolist()
        require(
            math.isclose(fitted.largest, first, rel_tol=1e-3) and fitted.noise_level[-1] >= least * (1 - 1e-3),
            f"sampler: fitted under another SDE, with noise levels from {fitted.largest:.4g} to "
            f"{fitted.noise_level[-1]:.2g}; {model.sde} has {first:.4g} to {least:.2g}; fit it to this model, as "
            "fit_sampler(model)",
        )
        t = model.sde.at_noise_level(fitted.noise_level).t
        return torch.cat([t, t.new_zeros(1)])

    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        grid = grids.check_grid(model.sde, grid)
        own = self.default_grid(model, len(grid) - 1)
        require(torch.allclose(grid, own, rtol=1e-6, atol=0), "grid: fitted tables have their own; give num_steps")
        return self.tables[len(grid) - 1].table(model.sde)

    def to_json(self) -> dict[str, Any]:
        """A description that JSON can hold."""
        return {
            str(n): {
                "largest": fitted.largest,
                "sigma_data": fitted.sigma_data,
                "noise_level": fitted.noise_level.tolist(),
                "weights": fitted.weights.tolist(),
            }
            for n, fitted in self.tables.items()
        }

    @classmethod
    def from_json(cls, found: Any) -> FittedSampler:
        """The sampler that `to_json` describes; raises `ValueError` for anything else."""
        try:
            tables = {int(n): _table_of(part) for n, part in found.items()}
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"not fitted tables: {error}") from error
        if not tables or any(len(fitted.noise_level) != n for n, fitted in tables.items()):
            raise ValueError("not fitted tables: lengths do not fit")
        return cls(tables)


def _table_of(part: Mapping[str, Any]) -> FittedTable:
    level, weights = (torch.tensor(part[name], dtype=torch.float64) for name in ("noise_level", "weights"))
    largest = float(part["largest"])
    sigma_data = float(part["sigma_data"])
    shaped = weights.ndim == 2 and level.shape == weights.shape[:1]
    finite = bool(level.isfinite().all() and weights.isfinite().all())
    positive = all(0 < x < math.inf for x in (largest, sigma_data))
    falls = bool((level > 0).all() and (level.diff() < 0).all() and (level <= largest * (1 + 1e-6)).all())
    for sound, what in ((shaped, "shapes"), (finite, "numbers"), (positive, "scales"), (falls, "noise levels")):
        if not sound:
            raise ValueError(f"their {what} are damaged")
    return FittedTable(level, largest, sigma_data, weights)

"""Reverse steps of Gaussians: what the best variance is, and models that know it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde import SDE, Condition, ExactScoreModel, Network, ScoreModel, WrappedModel
from scoresde.reverse import variance_range
from scoresde.sde import Level, bridge

STEPS = ((0.5, 0.46), (0.2, 0.16), (0.05, 0.01))


def levels(sde: SDE, starts: Sequence[float], ends: Sequence[float]) -> tuple[Level, Level]:
    """The levels of two lists of times, float64."""
    start, end = (sde.level(torch.tensor(times, dtype=torch.float64)) for times in (starts, ends))
    return start, end


def posterior_variance(variance: float | Tensor, level: Level) -> Tensor:
    """Var(x_0 | x_t) of N(0, variance)."""
    return variance * level.sigma**2 / (level.alpha**2 * variance + level.sigma**2)


def best_growth(variance: float | Tensor, s: Level, t: Level) -> Tensor:
    """log(Sigma / betatilde) of the true reverse variance of N(0, variance)."""
    on_x0, _, std = bridge(s, t)
    return torch.log1p(on_x0**2 * posterior_variance(variance, t) / std**2)


class KnownVariance(WrappedModel):
    """An exact model of independent Gaussians, with the best v of each step of a grid, and of the decoder.

    Args:
        model: the exact model.
        grid: the only times at which it is asked.
        variances: of the data, `shape`.
    """

    def __init__(self, model: ExactScoreModel, grid: Tensor, variances: Tensor) -> None:
        super().__init__(model)
        self.variances = variances
        level = model.sde.level(grid[grid > 0])
        self._v = {}
        for k in range(len(level) - 1):
            t, s = level[k], level[k + 1]
            self._v[round(t.t.item(), 6)] = best_growth(variances, s, t) / variance_range(s, t)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        return self.model.denoise_at(x_t, level, cond)

    def denoise_with_variance(self, x_t: Tensor, level: Level, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        x0_hat = self.denoise_at(x_t, level, cond)
        v = [self._v.get(round(t, 6), torch.ones_like(self.variances)) for t in level.t.expand(len(x_t)).tolist()]
        return x0_hat, torch.stack(v).to(x_t)


class TwoOutputs(Network):
    """One network for F, another for the second output."""

    learned_variance = True
    cond_dropout = 0.0

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return torch.cat([self.first(x, c_noise), self.second(x, c_noise)], 1)

    def check_cond(self, cond: Condition) -> None:
        assert cond is None

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return None


def has_learned_variance(model: ScoreModel, x_t: Tensor, level: Level) -> bool:
    """Whether a model gives a v."""
    return model.denoise_with_variance(x_t, level)[1] is not None

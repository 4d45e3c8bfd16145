r"""Predictor-corrector sampling (Song et al. 2021, algorithm 1).

A predictor, any one-step table, goes from one noise level to the next. Then Langevin steps at the new level pull the
samples towards its marginal p_t, and repair part of what the predictor and the learned score got wrong. Both are
tables, so their alternation is one.

Song et al.'s own algorithms 4 and 5 size the corrector's step by the mean norms over a batch of its noise and its
scores, e = 2 ratio^2 (snr |z| / |score|)^2, where ratio = alpha_t / alpha_s of the forward step from this level (1 for
VE, sqrt(1 - beta) on a DDPM chain). This adapts to scores of the wrong size, but it is not linear in the denoiser, so
it is not a table, and a sample depends on the others of its batch: `NormPredictorCorrector`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.ancestral import Ancestral
from samplers.base import Prepared, Sampler, Samples, StepSampler
from samplers.langevin import MeasuredSnr, Scheme, check_corrector, langevin_table
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.table import Callback, Loop, Projection, Table, concatenate
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import Level, transition

GUIDED_STEPS = 60  # with the corrections that `pilot_corrector` finds


def guided_grid(model: ScoreModel, num_steps: int) -> Tensor:
    """The grid of `pilot_corrector`, dense where the modes of the data part."""
    return grids.power_phi(model.sde, num_steps, 2.0, model.sigma_data)


def check_predictor(predictor: StepSampler) -> None:
    """Raises `UsageError` for a predictor whose steps cannot stand among corrections."""
    require(
        isinstance(predictor, StepSampler),
        f"predictor={predictor!r}: need a sampler that is a table, such as ReverseDiffusion()",
    )
    require(
        predictor.noise != "path",
        f"predictor={predictor!r}: needs path noise, and a corrector's is independent; take SDEDPMSolver(1)",
    )
    if isinstance(predictor, Ancestral) and predictor.by_entry:
        variance = "'learned'" if predictor.variance == "learned" else "by intervals"  # whose numbers fill pages
        raise UsageError(
            f"predictor=Ancestral(variance={variance}): its noise depends on the state, so that its steps are not "
            "those of a table; take Ancestral() or Ancestral(pilot_variance(model, intervals=1))"
        )
    require(
        predictor.one_step,
        f"predictor={predictor!r}: its steps use earlier values or their place in the grid, which corrections between "
        "them would break; need a one-step method, such as ReverseDiffusion(), DDIM() or Heun()",
    )


@final
@dataclass(frozen=True)
class PredictorCorrector(StepSampler):
    """A predictor's step, then `corrector_steps` Langevin steps of size 2 (snr sigma)^2 at the level reached.

    The bias of a Langevin step does not vanish with the grid, so the order is 0; 1 + `corrector_steps` evaluations a
    step with a one-stage predictor; independent noise.

    Attributes:
        predictor: a one-step sampler that is a table.
        snr: signal-to-noise ratio of a Langevin step, one or, from `pilot_corrector`, that of each noise level; with
            the latter the default grid and number of steps are those of the pilot.
        corrector_steps: Langevin steps for each predictor step.
        corrector_first: correct before the step, at the level that it leaves (Song et al.'s code), not after it (their
            paper).
        scheme: of the Langevin steps: "euler", or "leimkuhler_matthews" for longer ones (`samplers.langevin`); after a
            predictor without noise its first step adds half the noise.
        lowest: noise level sigma / alpha below which nothing is corrected.
    """

    predictor: StepSampler = field(default_factory=ReverseDiffusion)
    snr: float | MeasuredSnr = 0.16  # Song et al. 2021, appendix G, CIFAR-10
    corrector_steps: int = 1
    corrector_first: bool = False
    scheme: Scheme = "euler"
    lowest: float = 0.0

    order = 0
    noise = "independent"
    one_step = True

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.corrector_steps, self.scheme)
        check_predictor(self.predictor)
        require(self.lowest >= 0, f"lowest={self.lowest}: need a noise level, or 0 to correct at all levels")

    @property
    def default_num_steps(self) -> int:
        return GUIDED_STEPS if isinstance(self.snr, MeasuredSnr) else 250

    @property
    def min_steps(self) -> int:
        return self.predictor.min_steps

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        if isinstance(self.snr, MeasuredSnr):
            return guided_grid(model, num_steps)
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        corrected = start if self.corrector_first else end
        snr = self.snr.at(corrected) if isinstance(self.snr, MeasuredSnr) else self.snr
        corrector = langevin_table(corrected, snr, self.corrector_steps, self.scheme)
        tables = []
        for k, noise_level in enumerate(corrected.noise_level.tolist()):
            predict = self.predictor.steps(model, start[k : k + 1], end[k : k + 1])
            if noise_level < self.lowest:
                tables.append(predict)
                continue
            correct = corrector.rows(slice(k * self.corrector_steps, (k + 1) * self.corrector_steps))
            tables += [correct, predict] if self.corrector_first else [predict, correct]
        return concatenate(tables)


FEWEST_NUMBERS = 32  # in a batch: the mean norm of fewer is now and then near 0, and a step then far too large


@final
@dataclass(frozen=True)
class NormPredictorCorrector(Sampler):
    """A predictor's step (None: no predictor), then Langevin steps sized by norms, at every level after the first.

    Order 0; 1 + `corrector_steps` evaluations a step; independent noise; samples depend on their batch.

    Attributes:
        predictor: a one-step sampler that is a table, or None.
        snr: signal-to-noise ratio of a Langevin step, by the norms of a batch.
        corrector_steps: Langevin steps for each predictor step.
        scheme: of the Langevin steps: "euler" or "leimkuhler_matthews" (`samplers.langevin`).
    """

    predictor: StepSampler | None = field(default_factory=ReverseDiffusion)
    snr: float = 0.16  # Song et al. 2021, appendix G, CIFAR-10
    corrector_steps: int = 1
    scheme: Scheme = "euler"

    order = 0
    noise = "independent"
    default_num_steps = 250

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.corrector_steps, self.scheme)
        if self.predictor is not None:
            check_predictor(self.predictor)

    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        return grids.uniform_log_snr(model.sde, self.default_num_steps if num_steps is None else num_steps)

    def evaluated(self, model: ScoreModel, grid: Tensor) -> Level:
        levels = model.sde.level(grid[grid > 0])
        parts = []
        for k in range(len(levels) - 1):
            if self.predictor is not None:
                parts.append(self.predictor.steps(model, levels[k : k + 1], levels[k + 1 : k + 2]).level)
            parts += [levels[k + 1 : k + 2]] * self.corrector_steps
        if grid[-1] == 0:
            parts.append(levels[-1:])
        return Level.join(torch.cat, parts)

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        return _PreparedByNorm(self, model, grids.check_grid(model.sde, grid))


@final
class _PreparedByNorm(Prepared):
    """`NormPredictorCorrector` on a model and a grid."""

    def __init__(self, sampler: NormPredictorCorrector, model: ScoreModel, grid: Tensor) -> None:
        self.sampler = sampler
        self.model = model
        self.grid = grid
        self.nfe = model.num_calls(sampler.evaluated(model, grid))

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        if x_T.numel() < FEWEST_NUMBERS:
            warnings.warn(
                f"NormPredictorCorrector: {x_T.numel()} numbers in a batch are too few to size steps by their norms; "
                "samples may be far too wide; draw larger batches, or take PredictorCorrector",
                stacklevel=2,
            )
        model = self.model
        sampler = self.sampler
        levels = model.sde.level(self.grid[self.grid > 0])
        ratios = transition(levels[1:], levels[:-1])[0].tolist()
        on_device = levels.to(x_T.device, x_T.dtype)
        y = x_T
        row = 0

        def evaluate(x_t: Tensor, level: Level) -> Tensor:
            x0_hat = model.denoise_at(x_t, level, cond)
            if callback is not None:
                callback(row, level, x_t, x0_hat)
            return x0_hat

        for k, ratio in enumerate(ratios):
            if sampler.predictor is not None:
                step = sampler.predictor.steps(model, levels[k : k + 1], levels[k + 1 : k + 2])
                y = Loop(step, model, y, first_row=row)(y, noise, cond, callback, project)
                row += len(step)
            level = on_device[k + 1]
            for _ in range(sampler.corrector_steps):
                score = (level.alpha * evaluate(y, level) - y) / level.sigma**2
                z = noise.normal(row + 1, tuple(y.shape[1:]), y.dtype)
                size = 2 * ratio**2 * (sampler.snr * _mean_norm(z) / _mean_norm(score)) ** 2
                if sampler.scheme == "leimkuhler_matthews":
                    z = (noise.normal(row, tuple(y.shape[1:]), y.dtype) + z) / 2
                y = y + size * score + torch.sqrt(2 * size) * z
                if project is not None:
                    y = project(row, level, y)
                row += 1
        if self.grid[-1] == 0:
            y = evaluate(y, on_device[-1])
            if project is not None:
                clean = Level.clean().map(lambda part: part[0]).to(y.device, y.dtype)
                y = project(row, clean, y)
        return Samples(y, self.nfe)


def _mean_norm(x: Tensor) -> Tensor:
    """Mean over the batch of the norms of the samples."""
    return x.flatten(1).norm(dim=1).mean()

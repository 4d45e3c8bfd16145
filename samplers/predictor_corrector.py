r"""Predictor-corrector sampling (Song et al. 2021, algorithm 1).

A predictor, any table, goes from one noise level to the next; then Langevin steps at the new level pull the samples
towards its marginal p_t and repair part of what the predictor and the learned score got wrong. Both are tables, so
their alternation is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from samplers import grids
from samplers.base import StepSampler
from samplers.langevin import check_corrector, langevin_rows
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.table import Table, concatenate
from scoresde.errors import require
from scoresde.sde import SDE, Level


@final
@dataclass(frozen=True)
class PredictorCorrector(StepSampler):
    """A predictor's step, then `corrector_steps` Langevin steps of size 2 (snr sigma)^2 at the level reached.

    With `corrector_first` they come before the step, at the level that it leaves: the order of Song et al.'s code,
    where that of their paper is the default.

    The bias of a Langevin step does not vanish with the grid, so the order is 0; 1 + `corrector_steps` evaluations a
    step with a one-stage predictor; independent noise.
    """

    predictor: StepSampler = field(default_factory=ReverseDiffusion)
    snr: float = 0.16  # Song et al. 2021, appendix G, CIFAR-10
    corrector_steps: int = 1
    corrector_first: bool = False

    order = 0
    noise = "independent"
    default_grid = staticmethod(grids.uniform_log_snr)
    default_num_steps = 250

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.corrector_steps)
        require(
            isinstance(self.predictor, StepSampler),
            f"predictor={self.predictor!r}: need a sampler that is a table, such as ReverseDiffusion()",
        )
        require(
            self.predictor.noise != "path",
            f"predictor={self.predictor!r}: needs path noise, and a corrector's is independent; take SDEDPMSolver()",
        )

    @property
    def min_steps(self) -> int:  # type: ignore[override]
        return self.predictor.min_steps

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        corrector = langevin_rows(start if self.corrector_first else end, self.snr, self.corrector_steps)
        tables = []
        for k in range(len(start.t)):
            predict = self.predictor.steps(sde, start.at(slice(k, k + 1)), end.at(slice(k, k + 1)))
            correct = corrector.rows(slice(k * self.corrector_steps, (k + 1) * self.corrector_steps))
            tables += [correct, predict] if self.corrector_first else [predict, correct]
        return concatenate(tables)

r"""Langevin dynamics at a fixed noise level, and its annealing through the levels.

The chain x' = x + e score(x) + sqrt(2 e) z leaves p_t nearly untouched for small e and forgets its start. With the step
sized by the noise, e = 2 (snr sigma)^2, the ratio of the step's signal (about e / sigma) to its noise is `snr`, as in
Song et al. 2021, algorithm 4, and it is linear in x and D:

    x' = (1 - 2 snr^2) x + 2 snr^2 alpha D + 2 snr sigma z.

(Song et al. size the step by the mean norms of each batch's noise and scores, which makes a sample depend on the rest
of its batch: `samplers.predictor_corrector`.)

Annealed Langevin dynamics (Song and Ermon 2019, algorithm 1) runs the chain at each level of a falling sequence, from
where the last level left it. It is predictor-corrector sampling without a predictor. It does not follow the reverse
process: its error falls with more steps at each level and smaller `snr`, not with a finer grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.table import Table, denoiser_table
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


def langevin_table(level: Level, snr: float, repeats: int) -> Table:
    """`repeats` Langevin steps at each time of a level, parts of shape `(n,)`: n * repeats rows.

    With one time it is plain Langevin dynamics at a fixed noise level.
    """
    level = level.map(lambda part: part.repeat_interleave(repeats))
    a = torch.full_like(level.t, 1 - 2 * snr**2)
    return denoiser_table(level, level, a, 2 * snr**2 * level.alpha, 2 * snr * level.sigma)


def check_corrector(snr: float, corrector_steps: int) -> None:
    """Raises `UsageError` for a step that diverges (snr >= 1) or a count below 1."""
    require(0 < snr < 1, f"snr={snr}: need 0 < snr < 1; 0.16 is usual")
    require(corrector_steps >= 1, f"corrector_steps={corrector_steps}: need at least 1")


@final
@dataclass(frozen=True)
class AnnealedLangevin(StepSampler):
    """`corrector_steps` Langevin steps of size 2 (snr sigma)^2 at every level of the grid after the first.

    Order 0; `corrector_steps` evaluations a step; independent noise.

    Attributes:
        snr: signal-to-noise ratio of a Langevin step; on the command line 0 has it chosen by a pilot run.
        corrector_steps: Langevin steps at each level.
    """

    snr: float = 0.4  # mode weights and widths of a nine-mode mixture are best there (benchmarks/mixture_samplers.py)
    corrector_steps: int = 1

    order = 0
    noise = "independent"
    min_steps = 1
    one_step = True
    default_num_steps = 500

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.corrector_steps)

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        return langevin_table(end, self.snr, self.corrector_steps)

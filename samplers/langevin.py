r"""Langevin dynamics at a fixed noise level, and its annealing through the levels.

The chain x' = x + e score(x) + sqrt(2 e) z leaves p_t nearly untouched for small e and forgets its start. With the step
sized by the noise, e = 2 (snr sigma)^2, the ratio of the step's signal (about e / sigma) to its noise is `snr`, as in
Song et al. 2021, algorithm 4, and it is linear in x and D:

    x' = (1 - 2 snr^2) x + 2 snr^2 alpha D + 2 snr sigma z.

(Song et al. size the step by the mean norms of each batch's noise and scores, which makes a sample depend on the rest
of its batch: `samplers.predictor_corrector`.)

With fresh noise ("euler") the variance of the chain is too large by a share of snr^2. Leimkuhler and Matthews 2013 take
the mean of the noises of this step and the one before,

    x' = x + e score(x) + sqrt(2 e) (z + z_before) / 2,

which keeps a Gaussian exactly for every e that is stable. Steps can then be as long as the distribution of a level
allows. How long that is says the mean square m of the noise estimate, E|eps_hat|^2 / dim: with snr / sqrt(m) in place
of snr a step is 2 snr^2 times the variance of a Gaussian, whatever the level (`MeasuredSnr`).

Annealed Langevin dynamics (Song and Ermon 2019, algorithm 1) runs the chain at each level of a falling sequence, from
where the last level left it. It is predictor-corrector sampling without a predictor. It does not follow the reverse
process: its error falls with more steps at each level and smaller `snr`, not with a finer grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.table import Table, denoiser_table
from scoresde._by_level import check_by_level, interpolate
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

Scheme = Literal["euler", "leimkuhler_matthews"]


def langevin_table(level: Level, snr: float | Tensor, repeats: int, scheme: Scheme = "euler") -> Table:
    """`repeats` Langevin steps at each time of a level, parts of shape `(n,)`: n * repeats rows.

    With one time it is plain Langevin dynamics at a fixed noise level.

    Args:
        level: the times.
        snr: signal-to-noise ratio of a step: one, or `(n,)`.
        repeats: steps at each time.
        scheme: how noise is added.
    """
    snr = torch.as_tensor(snr, dtype=level.t.dtype).expand_as(level.t).repeat_interleave(repeats)
    level = level.map(lambda part: part.repeat_interleave(repeats))
    table = denoiser_table(level, level, 1 - 2 * snr**2, 2 * snr**2 * level.alpha, 2 * snr * level.sigma)
    return table if scheme == "euler" else replace(table, c=table.c / 2, d=table.c / 2)


@final
@dataclass(frozen=True)
class MeasuredSnr:
    """The signal-to-noise ratio of Langevin steps at some levels; between them it is linear in the log-SNR.

    Attributes:
        log_snr: of the levels, rising.
        snr: at each, snr / sqrt(m) as above; it may be above 1 where x_t is much wider than its noise.
    """

    log_snr: tuple[float, ...]
    snr: tuple[float, ...]

    def __post_init__(self) -> None:
        check_by_level(self.log_snr, self.snr, "snr of MeasuredSnr")

    def at(self, level: Level) -> Tensor:
        """The ratio at levels."""
        return interpolate(self.log_snr, self.snr, level)


def check_corrector(snr: float | MeasuredSnr, corrector_steps: int, scheme: Scheme = "euler") -> None:
    """Raises `UsageError` for a step that diverges (snr >= 1), a count below 1, or a scheme that is unknown."""
    require(isinstance(snr, MeasuredSnr) or 0 < snr < 1, f"snr={snr}: need 0 < snr < 1; 0.16 is usual")
    require(corrector_steps >= 1, f"corrector_steps={corrector_steps}: need at least 1")
    require(scheme in ("euler", "leimkuhler_matthews"), f"scheme={scheme!r}: need 'euler' or 'leimkuhler_matthews'")


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

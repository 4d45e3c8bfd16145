"""Fitting a solver to a model with one pilot run.

Which solver is best at few evaluations depends on the network, because its errors make the flow rough at noise levels
where the exact flow is smooth. So the solver is fitted to the network:

    1. Reference. A run of 12 evaluations measures the scale of the samples. Then 32 samples are followed along the
       probability flow with 136 evaluations, and some entries of the states and of the denoiser's outputs are kept
       (`samplers.fitted.reference`).
    2. Nodes. For n steps, propose noise levels (`samplers.fitted.nodes`): with 15 steps or more, equal-error nodes and
       early nodes; with 10 or fewer, equal-error nodes, one or two power grids, and the winner of a larger count.
    3. Weights. On each proposal, fit the weights of the steps to the reference by least squares; run the table on the
       reference's noise, and fit the weights again to that run (`samplers.fitted.least_squares`).
    4. Choice. For seven step counts, keep the table with the smallest RMS error over the best 90 % of the samples. For
       other counts, take the node family and the change by the refit from the nearest tested count; above the largest
       tested count, the node family alone.

With many steps, equal-error nodes (plain or early) are best. With few steps, errors measured on the reference predict
the real run poorly, and a power grid can be better. Tables of few evaluations start below the noise level of t_max, at
most at 30 times the spread of the data, where the denoiser already returns more than the data's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from samplers.fitted.least_squares import PathFit, fit_weights, refit, transfer_refit
from samplers.fitted.nodes import equal_error_nodes, path_error, power_nodes
from samplers.fitted.reference import COARSE, DENSE, reference_run, trimmed_error
from samplers.fitted.tables import FittedSampler, FittedTable
from scoresde._batches import choose_batch_size
from scoresde.models.split import SplitModel
from scoresde.score_model import ScoreModel

NUM_STEPS = range(4, 51)  # for which tables are fitted

# Which candidates are run at which step counts, from the largest count down. "average" and "peak" are power grids: the
# best by `path_error`, and the one whose largest error, the end included, is smallest. "winner" is the family that won
# last at a larger count, if it is not a candidate already; otherwise the next power grid by `path_error`. Chosen by
# trial, as the numbers below; benchmarks/NOTES.md lists what was tried.
Candidate = Literal["equal", "early", "average", "peak", "winner"]
TESTED: dict[int, tuple[Candidate, ...]] = {
    35: ("equal", "early"),
    20: ("equal", "early"),
    15: ("equal", "early"),
    10: ("equal", "average", "peak", "winner"),
    8: ("equal", "average", "peak", "winner"),
    6: ("equal", "average", "winner"),
    5: ("equal", "average", "winner"),
}
JUDGED = 0.9  # share of the samples that judges a candidate: one in another basin says nothing about the others
POWERS = (1.0, 1.5, 2.0, 3.0)
SCALES = (0.5, 1.0, 2.0, 4.0)  # multiples of the spread

REVISION = 3  # increase when the pilot run changes: saved tables of another revision are made again
NUM_EVALUATIONS = COARSE + DENSE + sum(n * len(kinds) for n, kinds in TESTED.items())  # of a pilot run

Family = partial[Tensor]  # the noise levels of a family of nodes, for a number of steps


@torch.no_grad()
def fit_sampler(
    model: ScoreModel,
    cond: Any = None,
    on_evaluation: Callable[[], None] = lambda: None,
    batch_size: int | None = None,
) -> FittedSampler:
    """Fits tables of 4 to 50 evaluations to a model.

    Args:
        model: what will be sampled from.
        cond: None, one label for all samples, or any number of conditions, which are distributed over the 32 samples.
        on_evaluation: called after each of `NUM_EVALUATIONS` evaluations of the model.
        batch_size: samples that the model is called with at a time; by default as many as need little memory.

    Example:
        sampler = fit_sampler(model)
        x, nfe = sample(model, sampler, 1000, num_steps=8)
    """
    model = SplitModel(model, choose_batch_size(batch_size, model.shape, model.device))
    reference = reference_run(model, cond, on_evaluation=on_evaluation)
    sde = model.sde
    equal, early = (partial(equal_error_nodes, reference, sde, early=early) for early in (False, True))
    powers = [partial(power_nodes, reference, sde, power=power, scale=scale) for power in POWERS for scale in SCALES]
    best: dict[int, tuple[Family, FittedTable]] = {}  # by step count: the family that won, and its refitted table

    @cache
    def fitted(family: Family, n: int) -> PathFit:
        return fit_weights(reference, sde, family(n))

    def ranked(kind: Candidate, n: int) -> list[Family]:
        """The families that a kind of candidate stands for, the best first."""
        if kind == "equal":
            return [equal]
        if kind == "early":
            return [early]
        if kind == "peak":
            return sorted(powers, key=lambda family: fitted(family, n).errors.max().item())
        by_path_error = sorted(powers, key=lambda family: path_error(fitted(family, n).errors))
        return by_path_error if kind == "average" else [family for family, _ in reversed(best.values())] + by_path_error

    for n, kinds in TESTED.items():
        candidates: list[Family] = []
        for kind in kinds:
            candidates.append(next(family for family in ranked(kind, n) if family not in candidates))
        smallest = math.inf
        for family in candidates:
            refitted, x = refit(reference, model, fitted(family, n).table, on_evaluation)
            error = trimmed_error(x, reference.coupling.x_0, JUDGED)
            if n not in best or error < smallest:
                best[n] = family, refitted
                smallest = error
    tables = {}
    for n in NUM_STEPS:
        nearest = min(best, key=lambda tested: abs(math.log(tested / n)))
        family, refitted = best[nearest]
        tables[n] = fitted(family, n).table
        if n <= max(TESTED):
            tables[n] = transfer_refit(fitted(family, nearest).table, refitted, tables[n])
    return FittedSampler(tables)

"""A solver that chooses itself: tables fitted to a model by one pilot run.

Which solver is best at few evaluations depends on the network: its errors make the flow rough at other noise levels
than those of the data would. So a pilot run follows a few samples along the probability flow with many evaluations
(`samplers.fitted.reference`), and the rest is learned from what it saw: the weights of a table on some nodes
(`samplers.fitted.least_squares`), and the nodes (`samplers.fitted.nodes`). Networks differ there: with steps small
enough, nodes
that share the errors evenly among the steps are best, for some of them with more at large noise; with few steps the
flow between two nodes is not what its errors at the nodes say, and a power of phi may be better.

For a few numbers of evaluations, from many to few, candidates are run on the pilot's noise, each fitted again to its
own run; the one that ends nearest to the pilot's ends is kept. In between, nodes of the nearest number's kind hold, and
what its run taught; beyond the largest number only the nodes do. With few evaluations they start at less noise than
t_max, where the first of them sees more than the data's mean.

The candidates, the score that ranks the powers of phi, and the ridges were chosen by trial on the problems of
`benchmarks/samplers_nfe.py`, which reports what they reach there; docs/samplers.md says what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from samplers.fitted.least_squares import PathFit, carried, fit, refit
from samplers.fitted.nodes import even_nodes, power_nodes, score
from samplers.fitted.reference import COARSE, DENSE, pilot_run, trimmed_error
from samplers.fitted.tables import FittedSampler, FittedTable
from scoresde.score_model import ScoreModel

NUM_STEPS = range(4, 51)  # for which tables are fitted
# For which numbers of evaluations candidates are run: even nodes (e), early ones (l), the best winner of the numbers
# before (b), and of the powers of phi the next by score (s) or by the largest error on the way (w)
RUNS = {35: "el", 20: "el", 15: "el", 10: "eswb", 8: "eswb", 6: "esb", 5: "esb"}
JUDGED = 0.9  # of the pilot's samples: one that flips says nothing of the others
POWERS, SHARES = (1.0, 1.5, 2.0, 3.0), (0.5, 1.0, 2.0, 4.0)

Nodes = partial[Tensor]  # noise levels, of a number of steps

REVISION = 2  # of what a pilot does; tables that are kept from another are made again
NUM_EVALUATIONS = COARSE + DENSE + sum(n * len(kinds) for n, kinds in RUNS.items())  # of a pilot


@torch.no_grad()
def pilot(
    model: ScoreModel,
    cond: Tensor | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> FittedSampler:
    """Fits tables of 4 to 50 evaluations to a model.

    Args:
        model: what will be sampled from.
        cond: conditions of the 32 pilot samples, `(32, ...)`, or None.
        tell: called after each evaluation with their number, up to `NUM_EVALUATIONS`.

    Example:
        sampler = pilot(model)
        x, nfe = sample(model, sampler, 1000, num_steps=8)
    """
    done = 0

    def evaluated() -> None:
        nonlocal done
        done += 1
        tell(done)

    run, sde = pilot_run(model, cond, tell=evaluated), model.sde
    even, early = (partial(even_nodes, run, sde, early=early) for early in (False, True))
    powers = [partial(power_nodes, run, sde, power=power, share=share) for power in POWERS for share in SHARES]
    best: dict[int, tuple[Nodes, FittedTable]] = {}  # by the number of evaluations; its table fitted to its own run

    @cache
    def first(nodes: Nodes, n: int) -> PathFit:
        return fit(run, sde, nodes(n))

    def candidates(kind: str, n: int) -> list[Nodes]:
        if kind in "el":
            return [even if kind == "e" else early]
        if kind == "w":
            return sorted(powers, key=lambda nodes: first(nodes, n).errors.max().item())
        by_score = sorted(powers, key=lambda nodes: score(first(nodes, n).errors))
        return by_score if kind == "s" else [nodes for nodes, _ in reversed(best.values())] + by_score

    for n, kinds in RUNS.items():
        chosen: list[Nodes] = []
        for kind in kinds:
            chosen.append(next(nodes for nodes in candidates(kind, n) if nodes not in chosen))
        least = math.inf
        for nodes in chosen:
            refitted, x = refit(run, model, first(nodes, n).fit, evaluated)
            error = trimmed_error(x, run.truth.end, JUDGED)
            if n not in best or error < least:
                best[n], least = (nodes, refitted), error
    fits = {}
    for n in NUM_STEPS:
        nearest = min(best, key=lambda run_for: abs(math.log(run_for / n)))
        nodes, refitted = best[nearest]
        fits[n] = first(nodes, n).fit
        if n <= max(RUNS):
            fits[n] = carried(first(nodes, nearest).fit, refitted, fits[n])
    return FittedSampler(fits)

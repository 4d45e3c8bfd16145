"""A solver that chooses itself: tables fitted to a model by one pilot run.

Which solver is best at few evaluations depends on the network: its errors make the flow rough at other noise levels
than those of the data would. So a pilot run follows a few samples along the probability flow with many evaluations
(`samplers.pilot_run`), and the rest is learned from what it saw: the weights of a table on some nodes
(`samplers.pilot_fit`), and the nodes. Networks differ there: one with exact scores is served best by powers of phi, one
that predicts noise by nodes that are dense at large noise, where its errors are.

The errors that a table would make along the pilot's path are known, and rank some twenty sets of nodes. For a few
numbers of evaluations, from many to few, the most promising and the winner of the number before are run on the pilot's
noise, each fitted again to its own run; the one that ends nearest to the pilot's ends is kept. In between, the nodes of
the nearest number hold, and what its run taught. With few evaluations they start at less noise than t_max, where the
first of them sees more than the data's mean.

The sets of nodes, the score that ranks them and the ridges were chosen by trial on the problems of
`benchmarks/samplers_nfe.py`, which reports what they reach there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import grids
from samplers.fitted import Fit, Fitted
from samplers.pilot_fit import carried, fit, refit
from samplers.pilot_run import COARSE, DENSE, PilotRun, pilot_run, trimmed_error
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE

NUM_STEPS = range(4, 51)  # for which tables are fitted
# For which numbers of evaluations candidates are run: the winner of the number before (b), the next best by score (s)
# or by the largest error on the way (w)
RUNS = {35: "sss", 20: "sw", 15: "bs", 10: "bsw", 8: "bs", 6: "bsw", 5: "bs"}

FEW, START = 12, 30.0  # up to so many steps they start at most at so many times the spread

NUM_EVALUATIONS = COARSE + DENSE + sum(n * len(which) for n, which in RUNS.items())  # of a pilot, at most


class Plan(NamedTuple):
    """Nodes: "phi" (power and sd), "asinh" (last level as a share of the width, and width) or "time" (power).

    The first is at t_max, and with few steps at most at a noise level of `start`.
    """

    family: str
    shape: float
    spread: float = 1.0
    start: float = math.inf


def nodes(plan: Plan, sde: SDE, num_steps: int) -> Tensor:
    """The noise levels of a plan's evaluations, `(num_steps,)`, falling."""
    if plan.family == "phi":
        level = sde.noise_level(grids.phi_to_clean(sde, num_steps, plan.shape, plan.spread)[:-1])
        if num_steps <= FEW:
            level[0] = min(level[0].item(), max(plan.start, 1.1 * level[1].item()))
        return level
    if plan.family == "time":
        return sde.noise_level(grids.vp_quadratic(sde, num_steps, plan.shape)[:-1])
    first, least = sde.noise_level(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    start, end = (math.asinh(r / plan.spread) for r in (first, max(least, plan.shape * plan.spread)))
    level = plan.spread * torch.sinh(start + u * (end - start))
    level[0] = first
    return level


def candidates(run: PilotRun) -> list[Plan]:
    """The plans that are compared, for what a pilot run found."""
    start = START * run.spread
    phi = [
        Plan("phi", power, share * run.spread, start)
        for power in (1.0, 1.5, 2.0, 3.0)
        for share in (0.5, 1.0, 2.0, 4.0)
    ]
    return [
        *phi,
        *(Plan("asinh", 0.1, width * run.scale) for width in (0.005, 0.015, 0.04, 0.15)),
        Plan("time", 2.0),
        Plan("time", 3.0),
    ]


def score(errors: Tensor) -> float:
    """Of a table's errors along the pilot's paths: that at the end, to the power a, times the RMS of all, to 1 - a.

    The larger the steps, the more those on the way count, as what they do to the next values is not in them: a rises to
    1 at 28 steps.
    """
    share = min((len(errors) - 2) / 26, 1)
    return (errors[-1] ** share * errors.square().mean().sqrt() ** (1 - share)).item()


@torch.no_grad()
def pilot(
    model: ScoreModel,
    cond: Tensor | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Fitted:
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
    plans = candidates(run)
    best: dict[int, tuple[Plan, Fit, Fit]] = {}  # fitted to the paths, and to its own run
    for n, which in RUNS.items():
        first = {plan: fit(run, sde, nodes(plan, sde, n)) for plan in plans}
        orders = {
            "s": sorted(plans, key=lambda plan: score(first[plan][1])),
            "w": sorted(plans, key=lambda plan: first[plan][1].max().item()),
            "b": [winner[0] for winner in reversed(best.values())],
        }
        chosen: list[Plan] = []
        for kind in which:
            chosen.append(next(plan for plan in orders[kind] + orders["s"] if plan not in chosen))
        least = math.inf
        for plan in chosen:
            refitted, x = refit(run, model, first[plan][0], evaluated)
            error = trimmed_error(x, run.truth.end)
            if n not in best or error < least:
                best[n], least = (plan, first[plan][0], refitted), error
    fits = {}
    for n in NUM_STEPS:
        plan, fitted, refitted = best[min(best, key=lambda run_for: abs(math.log(run_for / n)))]
        fits[n] = carried(fitted, refitted, fit(run, sde, nodes(plan, sde, n))[0])
    return Fitted(fits)

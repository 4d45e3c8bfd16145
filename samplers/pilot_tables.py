r"""A solver that chooses itself: tables fitted to a model by one pilot run.

Which solver is best at few evaluations depends on the network: its errors make the flow rough at other noise levels
than those of the data would. So a pilot run follows a few samples along the probability flow with many evaluations, and
the rest is learned from what it saw.

**Weights.** In the velocity view a step is y_{k+1} = y_k + sum_j w_j h_{k-j} (`samplers.multistep`). Adams's weights
are exact for polynomials; along the pilot's own path y and h are known at every noise level, so the weights that are
best *for this flow* are those of least squares over all entries of all samples,

    min_w  sum | y_{k+1} - y_k - sum_j w_j h_{k-j} |^2 + ridge mean |h|^2 | w - w_Adams |^2,

for the step and, with the value at its end, for its correction. A few weights against thousands of equations: the
tables carry over to other samples, and the ridge returns to Adams where the equations say nothing.

**Nodes.** The errors that a table on some nodes would make along the pilot's path are known too. For a few numbers of
evaluations, those of some twenty sets of nodes that promise most are run on the pilot's samples, and judged by the
error against the pilot's end times the root of what they promised, as few samples say little of rare flips of a basin;
in between, the choice of the nearest number holds. With few evaluations they start at less noise than t_max, where the
first of them sees more than the data's mean. Networks differ: one with exact scores is served best by powers of phi,
one that predicts noise by nodes that are dense at large noise, where its errors are.

The sets of nodes, the score that ranks them and the ridges were chosen by trial on the problems of
`benchmarks/samplers_nfe.py`, which reports what they reach there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import grids
from samplers.fitted import Fit, Fitted
from samplers.multistep import Scheme, corrected, multistep_weights
from samplers.noise import Noise
from samplers.pilot_run import COARSE, DENSE, PilotRun, pilot_run, trimmed_error
from samplers.quadrature import Phi
from samplers.table import Loop
from samplers.trigonometric import to_clean
from samplers.views import VelocityView, level_at
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE

NUM_STEPS = range(4, 51)  # for which tables are fitted
ANCHORS = {5: 5, 7: 5, 10: 4, 14: 3, 20: 2, 35: 2}  # where candidates are run, and how many

FEW, START = 12, 30.0  # up to so many steps they start at most at so many times the spread

NUM_EVALUATIONS = COARSE + DENSE + sum(n * count for n, count in ANCHORS.items())  # of a pilot, at most


class Plan(NamedTuple):
    """Nodes: "phi" (power and sd), "asinh" (last level as a share of the width, and width) or "time" (power).

    The first is at t_max, and with few steps at most at a noise level of `start`.
    """

    family: str
    shape: float
    spread: float = 1.0
    start: float = math.inf


class Form(NamedTuple):
    """Of a fit: how many values a step knows, the number of Adams's weights that it starts from, and the ridge."""

    num_values: int
    order: int
    ridge: float


def form_of(num_steps: int) -> Form:
    """Large steps are fitted best from Adams's second order, small ones from his fourth and closer to it."""
    if num_steps < 20:
        return Form(3, 2, 1e-4)
    return Form(3, 3, 1e-4) if num_steps < 30 else Form(5, 4, 1e-3)


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


def fit(run: PilotRun, sde: SDE, plan: Plan, num_steps: int, form: Form | None = None) -> tuple[Fit, float]:
    """The table of a plan, and a score of the errors that it makes along the pilot's path; less is better."""
    form = form or form_of(num_steps)
    r = nodes(plan, sde, num_steps)
    view, level = VelocityView(run.scale), level_at(sde, r)
    num_values = min(form.num_values, num_steps)
    scheme = Scheme(view, Phi(run.scale), min(form.order, num_values), True)
    predict, correct = multistep_weights(scheme, level, to_clean(level))
    assert correct is not None
    u, denoised = run.at(r)
    u[0] = r[0] * run.noise  # what it is where the table starts; D hardly differs there from what it is on the path
    phi = view.measure(r)[:, None]
    h = (torch.cos(phi) ** 2 * u - denoised) / torch.sin(phi)
    y = torch.cat([u * torch.cos(phi), run.denoised[-1:]])  # cos(phi) = (1 + (r / sd)^2)^(-1/2)
    step = y.diff(dim=0)
    predict = torch.nn.functional.pad(predict, (0, num_values - predict.shape[1]))
    correct = torch.nn.functional.pad(correct, (0, num_values + 1 - correct.shape[1]))
    gram, moments = h @ h.T, h @ step.T
    for k in range(num_steps):
        past = list(range(k, max(k - num_values, -1), -1))
        _least_squares(predict[k, : len(past)], gram, moments[:, k], past, form.ridge)
        if k + 1 < num_steps:
            _least_squares(correct[k, : len(past) + 1], gram, moments[:, k], [k + 1, *past], form.ridge)
    largest = run.noise_level[0].item()
    return Fit(r, largest, run.scale, corrected(predict, correct)), _score(predict, correct, h, step)


def _score(predict: Tensor, correct: Tensor, h: Tensor, step: Tensor) -> float:
    """The RMS error at the end, to the power a, times that over all nodes, to the power 1 - a.

    The values of h are those of the pilot's path, so what an error on the way does to the next values is not seen: the
    larger the steps, the more the errors on the way count. a rises to 1 at 28 steps.
    """
    num_steps = len(h)
    errors, at_node = [], torch.zeros_like(step[0])  # of the corrected values
    for k in range(num_steps):
        count = min(predict.shape[1], k + 1)
        past = h[torch.arange(k, k - count, -1)]
        errors.append(at_node + predict[k, :count] @ past - step[k])
        if k + 1 < num_steps:
            at_node = at_node + correct[k, 0] * h[k + 1] + correct[k, 1 : count + 1] @ past - step[k]
    sizes = torch.stack(errors).square().mean(1).sqrt()
    share = min((num_steps - 2) / 26, 1)
    return (sizes[-1] ** share * sizes.square().mean().sqrt() ** (1 - share)).item()


def _least_squares(weights: Tensor, gram: Tensor, moments: Tensor, values: Sequence[int], ridge: float) -> None:
    """Moves weights, in place, from where they are to those of least squares with a ridge around where they were."""
    index = torch.tensor(values)
    own = gram[index[:, None], index]
    matrix = own + (ridge * own.diagonal().mean() + 1e-30) * torch.eye(len(index), dtype=own.dtype)  # h may be 0
    weights += torch.linalg.solve(matrix, moments[index] - own @ weights)


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
    truth = run.truth
    chosen: dict[int, Plan] = {}
    for anchor, count in ANCHORS.items():
        scored = ((*fit(run, sde, plan, anchor), plan) for plan in candidates(run))
        ranked = sorted(scored, key=lambda candidate: candidate[1])  # by what they promise
        chosen[anchor], least = ranked[0][2], math.inf
        for fitted, score, plan in ranked[:count]:
            with model.evaluating():
                table = fitted.table(sde)
                x_T = truth.start_of(table, sde)
                x = Loop(table, model, x_T)(x_T, Noise(0, torch.arange(0)), truth.cond, lambda *_: evaluated())
            merit = trimmed_error(x, truth.end) * math.sqrt(score)
            if merit < least:
                chosen[anchor], least = plan, merit
    fits = {}
    for n in NUM_STEPS:
        nearest = min(chosen, key=lambda anchor: abs(math.log(anchor / n)))
        fits[n] = fit(run, sde, chosen[nearest], n)[0]
    return Fitted(fits)

r"""Weights fitted to a pilot run.

In the velocity integrand a step is y_{k+1} = y_k + sum_j w_j h_{k-j} (`samplers.multistep`). Adams's weights are exact
for
polynomials; along the pilot's paths y and h are known at every noise level, so the weights that are best *for this
flow* are those of least squares over all entries of all samples,

    min_w  sum | y_{k+1} - y_k - sum_j w_j h_{k-j} |^2 + ridge mean |h|^2 | w - w_0 |^2.

`fit` takes y_k and h from the converged paths, for the step from Adams's weights w_0 and, with the value at its end,
for its correction. A table so fitted leaves the paths when it is run, by errors of its own. `refit` runs it, on the
pilot's noise, and fits each step again, from the table's weights w_0, to where the run has come: y_{k+1} is still on
the converged paths, y_k and h are the run's, so that a step also takes back what it can of the errors before it. What
it changed is much the same at the next numbers of steps, to which it is `carried`.

A few weights against thousands of equations: the tables carry over to other samples, and the ridge returns to w_0 where
the equations say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.fitted.reference import PilotRun, kept
from samplers.fitted.tables import FittedTable
from samplers.integrands import VelocityIntegrand, level_at
from samplers.multistep import Scheme, corrected, multistep_weights
from samplers.quadrature import Phi
from samplers.trigonometric import to_clean
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE

REFIT_RIDGE = 2.0  # over the number of equations, up to 10 steps; it grows as the square of the steps
OUTLIER = 100.0  # mean square of a sample's residual over the median's, from which it counts less


class Form(NamedTuple):
    """Of a fit: how many values a step knows, the number of Adams's weights that it starts from, and the ridge."""

    num_values: int
    order: int
    ridge: float


def form_of(num_steps: int) -> Form:
    """Large steps are fitted best from Adams's second order, small ones from his third and closer to it."""
    if num_steps < 20:
        return Form(3, 2, 1e-4)
    return Form(3, 3, 1e-4) if num_steps < 30 else Form(4, 3, 1e-3)


class PathFit(NamedTuple):
    """A table fitted to the pilot's paths, and its errors there.

    Attributes:
        fit: the table.
        errors: `(n,)` RMS of where each step leads, those before it included.
        own: `(n,)` mean of what each step adds (`samplers.fitted.nodes`).
    """

    fit: FittedTable
    errors: Tensor
    own: Tensor


def fit(run: PilotRun, sde: SDE, r: Tensor, form: Form | None = None) -> PathFit:
    """The table on noise levels r that is best along the pilot's paths."""
    num_steps = len(r)
    form = form or form_of(num_steps)
    integrand, level = VelocityIntegrand(run.scale), level_at(sde, r)
    num_values = min(form.num_values, num_steps)
    scheme = Scheme(integrand, Phi(run.scale), min(form.order, num_values), True)
    predict, correct = multistep_weights(scheme, level, to_clean(level))
    assert correct is not None
    u, denoised = run.at(r)
    u[0] = r[0] * run.noise  # what it is where the table starts; D hardly differs there from what it is on the path
    phi = integrand.measure(r)[:, None]
    h = (torch.cos(phi) ** 2 * u - denoised) / torch.sin(phi)
    y = torch.cat([u * torch.cos(phi), run.denoised[-1:]])  # cos(phi) = (1 + (r / sd)^2)^(-1/2)
    step = y.diff(dim=0)
    predict = torch.nn.functional.pad(predict, (0, num_values - predict.shape[1]))
    correct = torch.nn.functional.pad(correct, (0, num_values + 1 - correct.shape[1]))
    gram, moments = h @ h.T, h @ step.T
    for k in range(num_steps):
        past = list(range(k, max(k - num_values, -1), -1))
        _least_squares(predict[k, : len(past)], gram[past][:, past], moments[past, k], form.ridge)
        if k + 1 < num_steps:
            past = [k + 1, *past]
            _least_squares(correct[k, : len(past)], gram[past][:, past], moments[past, k], form.ridge)
    largest = run.noise_level[0].item()
    errors, own = _errors(predict, correct, h, step, torch.sin(phi[:, 0]))
    return PathFit(FittedTable(r, largest, run.scale, corrected(predict, correct)), errors, own)


def _errors(predict: Tensor, correct: Tensor, h: Tensor, step: Tensor, sin_phi: Tensor) -> tuple[Tensor, Tensor]:
    """RMS errors of the predicted values, and what each step adds; h is that of the paths, whatever the errors."""
    num_steps = len(h)
    errors, own, at_node = [], [], torch.zeros_like(step[0])  # of the corrected values
    for k in range(num_steps):
        count = min(predict.shape[1], k + 1)
        past = h[torch.arange(k, k - count, -1)]
        missed = predict[k, :count] @ past - step[k]
        errors.append((at_node + missed).square().mean().sqrt())
        if k + 1 < num_steps:
            seen = correct[k, 0] / sin_phi[k + 1] * missed.abs().mean()
            missed = correct[k, 0] * h[k + 1] + correct[k, 1 : count + 1] @ past - step[k]
            at_node = at_node + missed
            own.append(torch.hypot(missed.abs().mean(), seen))
    return torch.stack(errors), torch.stack([*own, missed.abs().mean()])


def _least_squares(weights: Tensor, gram: Tensor, moments: Tensor, ridge: float) -> None:
    """Moves weights, in place, from where they are to those of least squares with a ridge around where they were."""
    matrix = gram + (ridge * gram.diagonal().mean() + 1e-30) * torch.eye(len(gram), dtype=gram.dtype)  # h may be 0
    weights += torch.linalg.solve(matrix, moments - gram @ weights)


@torch.no_grad()
def refit(
    run: PilotRun, model: ScoreModel, fitted: FittedTable, tell: Callable[[], None]
) -> tuple[FittedTable, Tensor]:
    """The table fitted to its own run, and where it leads the pilot's noise.

    A sample that leaves its path for another basin can no longer be led back, and counts little.
    """
    truth, level, integrand = run.truth, level_at(model.sde, fitted.noise_level), VelocityIntegrand(fitted.sd)
    num_steps, phi = len(level.t), integrand.measure(level.noise_level)
    path = torch.cat([run.at(level.noise_level)[0] * torch.cos(phi)[:, None], run.denoised[-1:]])
    scale, (p, q) = integrand.scale(level).tolist(), (factor.tolist() for factor in integrand.factors(level))
    weights = fitted.weights[:, :num_steps].clone()
    ridge = REFIT_RIDGE * max(1.0, num_steps / 10) ** 2 / path.shape[1]
    y = truth.start_of(fitted.table(model.sde), model.sde) / scale[0]
    owner = kept(torch.arange(len(y))[:, None].expand(len(y), y[0].numel())).long()
    values: list[Tensor] = []
    with model.eval_mode():
        for k in range(num_steps):
            x = scale[k] * y
            denoised = model.denoise_at(x, level.at(k).like(x), truth.cond)
            values = [p[k] * denoised + q[k] * x, *values[: weights.shape[1] - 1]]
            tell()
            past, w = torch.stack([kept(h) for h in values]), weights[k, : len(values)]
            wanted = path[k + 1] - kept(y)
            size = torch.zeros(len(y), dtype=wanted.dtype).index_add(0, owner, (wanted - w @ past).square())
            limit = OUTLIER * size.median()
            counted = past * torch.where(size > limit, limit / size, 1.0)[owner]
            _least_squares(w, counted @ past.T, counted @ wanted, ridge)
            y = y + sum(weight * h for weight, h in zip(w.tolist(), values, strict=True))
    return FittedTable(fitted.noise_level, fitted.largest, fitted.sd, weights), y


def carried(fitted: FittedTable, refitted: FittedTable, to: FittedTable) -> FittedTable:
    """What a refit changed at one number of steps n, on a fit of the same kind of nodes with m steps.

    The change for each unit of phi, at the same share of the steps, and (n / m)^2 of it: errors fall with the steps.
    """
    n, m = len(fitted.weights), len(to.weights)
    columns = min(m, max(refitted.weights.shape[1], to.weights.shape[1]))
    change = (refitted.weights - fitted.weights) / _steps(fitted)
    place = torch.linspace(0, n - 1, m, dtype=torch.float64)
    below = place.long().clamp(max=n - 2)
    here = torch.lerp(change[below], change[below + 1], (place - below)[:, None]) * _steps(to) * (n / m) ** 2
    weights = _widened(to.weights, columns) + _widened(here, columns).tril()
    return FittedTable(to.noise_level, to.largest, to.sd, weights)


def _steps(fitted: FittedTable) -> Tensor:
    """In phi, `(n, 1)`."""
    phi = VelocityIntegrand(fitted.sd).measure(fitted.noise_level)
    return torch.cat([phi, torch.zeros(1, dtype=phi.dtype)]).diff()[:, None]


def _widened(weights: Tensor, columns: int) -> Tensor:
    """With so many columns: zeros to the right, or fewer."""
    return torch.nn.functional.pad(weights, (0, columns - weights.shape[1]))

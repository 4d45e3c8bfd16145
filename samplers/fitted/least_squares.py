r"""The weights of a table, fitted to the reference by least squares.

In the velocity integrand a step is y_{k+1} = y_k + sum_j w_j h_{k-j} (`samplers.multistep`). Adams weights are exact
for polynomials. Along the paths of the reference, y and h are known at every noise level, so the weights that are best
*for this flow* are those of least squares over the kept entries of all samples,

    min_w  sum | y_{k+1} - y_k - sum_j w_j h_{k-j} |^2  +  ridge mean |h|^2 | w - w_0 |^2,

with w_0 the weights that the fit starts from. A few weights are fitted to thousands of equations, so tables hold for
other samples; the ridge keeps w at w_0 where the equations say nothing.

    1. Predict and correct. `fit_weights` takes y_k and h from the reference, and Adams weights for w_0. It fits the
       predictor P_k of each step, and its corrector C_k, which also has the value h_{k+1} at the step's end.
    2. Merge. The correction of a step is made in the next row, when h_{k+1} is known: row k+1 holds
       P_{k+1} + C_k - P_k, aligned by node. So a corrector costs no evaluation.
    3. Refit. Run on its own, the table leaves the reference, because its steps have errors. `refit` runs it on the
       reference's noise and fits each row again, with the row itself for w_0: y_{k+1} is still that of the reference,
       y_k and h are those of the run. Each step then also compensates for earlier errors.
    4. Transfer. The change that a refit makes varies slowly with the step count. `transfer_refit` reuses it at
       neighbouring counts, where nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.fitted.reference import Reference, subsample
from samplers.fitted.tables import FittedTable
from samplers.integrands import VelocityIntegrand, to_clean
from samplers.multistep import Scheme, multistep_weights, with_corrector
from samplers.quadrature import Phi
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE

# Chosen by trial on the problems of benchmarks/samplers_nfe.py; benchmarks/NOTES.md lists what was tried.
REFIT_RIDGE = 2.0  # divided by the number of equations; above 10 steps it grows as the square of the step count
OUTLIER = 100.0  # a sample with a larger multiple of the median squared residual is weighted down to this one


class FitSettings(NamedTuple):
    """How weights are fitted.

    Attributes:
        num_values: how many values of h a step uses.
        adams_values: how many of them the Adams weights use from which the fit starts.
        ridge: how strongly the fit is held to these.
    """

    num_values: int
    adams_values: int
    ridge: float


def fit_settings(num_steps: int) -> FitSettings:
    """Below 20 steps the fit starts from two Adams values, above from three; from 30 on it uses four, held closer."""
    if num_steps < 20:
        return FitSettings(3, 2, 1e-4)
    return FitSettings(3, 3, 1e-4) if num_steps < 30 else FitSettings(4, 3, 1e-3)


class PathFit(NamedTuple):
    """A table fitted to the reference, and its errors there.

    Attributes:
        table: the table.
        errors: `(n,)` accumulated RMS error of each predicted state, with h from the reference.
        step_errors: `(n,)` mean absolute error that each step adds by itself (`samplers.fitted.nodes`).
    """

    table: FittedTable
    errors: Tensor
    step_errors: Tensor


def fit_weights(reference: Reference, sde: SDE, noise_level: Tensor, settings: FitSettings | None = None) -> PathFit:
    """The table on falling noise levels `(n,)` that is best along the paths of the reference."""
    num_steps = len(noise_level)
    settings = settings or fit_settings(num_steps)
    sigma_data = reference.sigma_data
    integrand = VelocityIntegrand(sigma_data)
    level = sde.at_noise_level(noise_level)
    num_values = min(settings.num_values, num_steps)
    scheme = Scheme(integrand, Phi(sigma_data), min(settings.adams_values, num_values), corrector=True)
    predict, correct = multistep_weights(scheme, level, to_clean(level))
    assert correct is not None
    u, denoised = reference.at(noise_level)
    u[0] = noise_level[0] * reference.noise  # a table starts from pure noise; D is nearly the same for both
    phi = integrand.measure(noise_level)[:, None]
    h = (torch.cos(phi) ** 2 * u - denoised) / torch.sin(phi)
    y = torch.cat([u * torch.cos(phi), reference.denoised[-1:]])  # cos(phi) = (1 + (r / sigma_data)^2)^(-1/2)
    step = y.diff(dim=0)
    predict = _pad_columns(predict, num_values)
    correct = _pad_columns(correct, num_values + 1)
    gram = h @ h.T
    moments = h @ step.T
    for k in range(num_steps):
        past = list(range(k, max(k - num_values, -1), -1))
        _ridge_regression(predict[k, : len(past)], gram[past][:, past], moments[past, k], settings.ridge)
        if k + 1 < num_steps:
            past = [k + 1, *past]
            _ridge_regression(correct[k, : len(past)], gram[past][:, past], moments[past, k], settings.ridge)
    table = FittedTable(noise_level, reference.noise_level[0].item(), sigma_data, with_corrector(predict, correct))
    return PathFit(table, *_errors(predict, correct, h, step, torch.sin(phi[:, 0])))


def _errors(predict: Tensor, correct: Tensor, h: Tensor, step: Tensor, sin_phi: Tensor) -> tuple[Tensor, Tensor]:
    """`errors` and `step_errors` of a `PathFit`."""
    num_steps = len(h)
    errors = []
    step_errors = []
    at_node = torch.zeros_like(step[0])  # the error of the corrected states
    for k in range(num_steps):
        count = min(predict.shape[1], k + 1)
        past = h[torch.arange(k, k - count, -1)]
        predictor_miss = predict[k, :count] @ past - step[k]
        errors.append((at_node + predictor_miss).square().mean().sqrt())
        own = predictor_miss.abs().mean()
        if k + 1 < num_steps:
            corrector_miss = correct[k, 0] * h[k + 1] + correct[k, 1 : count + 1] @ past - step[k]
            at_node = at_node + corrector_miss
            own = torch.hypot(corrector_miss.abs().mean(), correct[k, 0] / sin_phi[k + 1] * own)
        step_errors.append(own)
    return torch.stack(errors), torch.stack(step_errors)


def _ridge_regression(weights: Tensor, gram: Tensor, moments: Tensor, ridge: float) -> None:
    """In-place ridge regression, regularised towards the current weights."""
    matrix = gram + (ridge * gram.diagonal().mean() + 1e-30) * torch.eye(len(gram), dtype=gram.dtype)  # h may be 0
    weights += torch.linalg.solve(matrix, moments - gram @ weights)


@torch.no_grad()
def refit(
    reference: Reference, model: ScoreModel, table: FittedTable, on_evaluation: Callable[[], None]
) -> tuple[FittedTable, Tensor]:
    """The table fitted to its own run, and its final states from the reference's noise.

    A sample that has left its path for another basin cannot be led back, and is weighted down.
    """
    coupling = reference.coupling
    integrand = table.integrand
    level = model.sde.at_noise_level(table.noise_level)
    num_steps = len(level)
    phi = integrand.measure(level.noise_level)
    path = torch.cat([reference.at(level.noise_level)[0] * torch.cos(phi)[:, None], reference.denoised[-1:]])
    scale = integrand.scale(level).tolist()
    p, q = (factor.tolist() for factor in integrand.factors(level))
    weights = table.weights[:, :num_steps].clone()
    ridge = REFIT_RIDGE * max(1.0, num_steps / 10) ** 2 / path.shape[1]
    y = coupling.start_of(table.table(model.sde), model.sde) / scale[0]
    owner = subsample(torch.arange(len(y))[:, None].expand(len(y), y[0].numel())).long()  # the sample of each entry
    values: list[Tensor] = []
    with model.eval_mode():
        for k in range(num_steps):
            x = scale[k] * y
            denoised = model.denoise_at(x, level[k].to(x.device, x.dtype), coupling.cond)
            values = [p[k] * denoised + q[k] * x, *values[: weights.shape[1] - 1]]
            on_evaluation()
            past = torch.stack([subsample(h) for h in values])
            w = weights[k, : len(values)]
            wanted = path[k + 1] - subsample(y)
            residual = (wanted - w @ past).square()
            size = torch.zeros(len(y), dtype=residual.dtype).index_add(0, owner, residual)
            limit = OUTLIER * size.median()
            counted = past * torch.where(size > limit, limit / size, 1.0)[owner]
            _ridge_regression(w, counted @ past.T, counted @ wanted, ridge)
            y = y + sum(weight * h for weight, h in zip(w.tolist(), values, strict=True))
    return FittedTable(table.noise_level, table.largest, table.sigma_data, weights), y


def transfer_refit(fitted: FittedTable, refitted: FittedTable, target: FittedTable) -> FittedTable:
    """A table of m steps with the change that a refit made at n steps, on nodes of the same family.

    (w_refitted - w_fitted)_k / dphi_k is interpolated linearly over k / (n - 1), and multiplied by dphi of the new step
    and by (n / m)^2, because the change falls as the square of the step count.

    Args:
        fitted, refitted: the table of n steps before and after its refit.
        target: the table of m steps.
    """
    n = len(fitted.weights)
    m = len(target.weights)
    columns = min(m, max(refitted.weights.shape[1], target.weights.shape[1]))
    change = (refitted.weights - fitted.weights) / _phi_steps(fitted)
    place = torch.linspace(0, n - 1, m, dtype=torch.float64)
    below = place.long().clamp(max=n - 2)
    here = torch.lerp(change[below], change[below + 1], (place - below)[:, None]) * _phi_steps(target) * (n / m) ** 2
    weights = _pad_columns(target.weights, columns) + _pad_columns(here, columns).tril()
    return FittedTable(target.noise_level, target.largest, target.sigma_data, weights)


def _phi_steps(table: FittedTable) -> Tensor:
    """The steps of a table in phi, `(n, 1)`."""
    phi = table.integrand.measure(table.noise_level)
    return torch.cat([phi, phi.new_zeros(1)]).diff()[:, None]


def _pad_columns(weights: Tensor, columns: int) -> Tensor:
    """Weights with another number of columns: zeros are added, or columns cut, on the right."""
    return torch.nn.functional.pad(weights, (0, columns - weights.shape[1]))

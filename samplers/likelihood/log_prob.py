r"""Exact log densities by the probability flow.

The flow carries data x_0 to noise x_T, and along it the log density changes by the divergence of its velocity (Chen et
al. 2018, theorem 1; Song et al. 2021, appendix D.2). In the velocity integrand, dy = h dphi with h = p D + q x and
x = scale y, so

    log p(x_0) = log p_T(x_T) + dim log scale(t_max) + int scale (p tr dD/dx + q dim) dphi,

from phi = 0, the data themselves, on. One evaluation of the model gives D and what is needed of its Jacobian
(`samplers.likelihood.divergence`). Steps and weights are those of `samplers.likelihood.inversion`, and the divergence
is integrated with the weights that h has in the whole integral. As the steps are fixed, fresh probes in every one of
them leave the log density unbiased, and its standard error follows from the probes themselves.

The standard error is that of the probes alone. Four more errors are not in it:

- The steps have an error. `step_error` is the difference from the same integral through every second node, which is
  several times larger if the steps are small enough.
- The model knows no noise level below that of t_min. There h is continued as the odd function through its first values;
  what this adds to the log density is `truncation`. If it is more than `TRUNCATED`, it is a guess.
- p_T is only close to a Gaussian. A prior that has the data's mean and covariance (`prior=Gaussian(mean, covariance)`,
  seen at t_max) is closer than the model's, which has mean 0 and deviation sigma_data: `benchmarks/divergence.py`
  measures both.
- The density is that of the model's flow. The reverse SDE of a learned score has another one, which is bounded by
  `scoresde.bounds`.

With one probe a step, the variance is taken from the differences of neighbouring steps, entry by entry: v_i (J v)_i has
the mean J_ii, which changes little between steps, and the variance sum_{j != i} J_ij^2, whose sum over i is half of the
trace's, for a symmetric J. With several probes, each step gives its own variance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.adaptive import BoundedEvaluations, check_tolerances, dormand_prince
from samplers.integrands import VelocityIntegrand
from samplers.likelihood.divergence import Divergence, Exact, Probes
from samplers.likelihood.inversion import Inversion, inversion, inversion_at
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.condition import Condition
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, check_data, warn_of_repeats, warn_of_scale
from scoresde.sde import Level
from scoresde.targets import Target

EXACT_UP_TO = 32  # entries of a sample, if the user does not choose
TRUNCATED = 0.1  # nats per dimension of noise below the model's smallest, beyond which they are a guess
COARSE = 0.05  # nats per dimension of step error, beyond which the steps are too few


class Likelihood(NamedTuple):
    """Log densities of samples.

    Attributes:
        log_prob: `(B,)` nats, of densities in the units of x_0.
        standard_error: `(B,)` of the random probes alone; 0 for an exact divergence.
        latent: `(B, *shape)` x_T.
        truncation: `(B,)` the part of log_prob that comes from noise levels below the model's smallest.
        step_error: `(B,)` the size of the error that the fixed steps make, estimated from above; with random probes it
            is at least about their standard error.
        nfe: network evaluations of a sample.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    truncation: Tensor
    step_error: Tensor
    nfe: int


def log_prob(
    model: ScoreModel,
    x_0: Tensor,
    cond: Condition = None,
    *,
    num_evaluations: int = 64,
    divergence: Divergence | None = None,
    prior: Target | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    differentiable: bool = False,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Likelihood:
    """Log density of data under the probability flow of a model, in fixed steps of order 4.

    Args:
        model, x_0, cond: whose flow, of which data `(B, *shape)` in the model's units, under which conditions. The
            state has the type of x_0: float64 data make a float64 integration around a model of any type.
        num_evaluations: of each sample; the divergence comes with them.
        divergence: `Exact()` or `Probes(...)`; None for the former up to 32 entries, and one probe a step above.
        prior: the data's distribution as it is seen at t_max, such as a `Gaussian` of their mean and covariance; None
            for N(0, sigma_data^2 I).
        seed: of the probes; a sample's are the same in every batch.
        batch_size: samples at a time; by default as many as need little memory (see docs/python.md).
        differentiable: keep the graph, for gradients with respect to x_0 and the model's parameters.
        on_evaluation: called after each evaluation.

    Raises:
        UsageError: for data of another shape, or that are not finite.

    Warns:
        of noise levels that do not fit the data, of columns that repeat a value and so have no density, and of errors
        beyond `TRUNCATED` and `COARSE`.
    """
    check_data(model, x_0, cond)
    size = choose_batch_size(batch_size, model.shape, model.device, graphs=1)
    warn_of_scale(model.sde, model.sigma_data)
    warn_of_repeats(x_0)
    flow = inversion(model.sde, num_evaluations, model.sigma_data)
    divergence = divergence or _default_divergence(x_0)
    indices = torch.arange(len(x_0), device=x_0.device)
    parts = []
    with torch.set_grad_enabled(differentiable), model.eval_mode():
        for part in batches(len(x_0), size):
            noise = Noise(seed, indices[part])
            denoiser = _Denoiser(model, condition.take(cond, part), divergence, noise, differentiable, on_evaluation)
            followed = _follow(denoiser, flow, x_0[part])
            density = _prior_log_prob(model, prior, followed.x_T) + followed.change
            errors = (followed.truncation, followed.step_error)
            parts.append(Likelihood(density, followed.variance.sqrt(), followed.x_T, *errors, denoiser.nfe))
    return _joined(parts, model)


def adaptive_log_prob(
    model: ScoreModel,
    x_0: Tensor,
    cond: Condition = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    divergence: Divergence | None = None,
    prior: Target | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Likelihood:
    """The same by torchdiffeq's Dormand and Prince method, its error per step within atol + rtol |y| on each sample.

    The noise levels up to 1.5 times the model's smallest are crossed in fixed steps. Probes are drawn once for all
    steps, as error control needs. A standard error, from their differences, is known from two probes on, and is NaN for
    one. Arguments and warnings as in `log_prob`; `nfe` is that of the batch with most.
    """
    check_data(model, x_0, cond)
    size = choose_batch_size(batch_size, model.shape, model.device, graphs=1)
    warn_of_scale(model.sde, model.sigma_data)
    warn_of_repeats(x_0)
    check_tolerances(rtol, atol, x_0.dtype)
    largest, smallest = model.sde.span().noise_level
    first = smallest * torch.linspace(1, 1.5, 4, dtype=torch.float64)
    below = inversion_at(model.sde.at_noise_level(first), model.sigma_data)
    ends = torch.stack([first[-1], largest])
    divergence = divergence or _default_divergence(x_0)
    indices = torch.arange(len(x_0), device=x_0.device)
    parts = []
    with torch.no_grad(), model.eval_mode():
        for part in batches(len(x_0), size):
            noise = Noise(seed, indices[part])
            denoiser = _Denoiser(model, condition.take(cond, part), divergence, noise, False, on_evaluation)
            followed = _follow(denoiser, below, x_0[part])
            x_T, changes = _odeint(denoiser, followed.x_T, ends, rtol, atol)
            density = _prior_log_prob(model, prior, x_T) + followed.change + changes.mean(1)
            exact = divergence.variance_left(x_0[0].numel()) == 0
            error = torch.zeros_like(density) if exact else _standard_error(changes)
            parts.append(Likelihood(density, error, x_T, followed.truncation, followed.step_error, denoiser.nfe))
    return _joined(parts, model)


def _default_divergence(x_0: Tensor) -> Divergence:
    return Exact() if x_0[0].numel() <= EXACT_UP_TO else Probes()


def _standard_error(changes: Tensor) -> Tensor:
    """Of the mean over probes of `(B, P)`; NaN for one probe."""
    count = changes.shape[1]
    return changes.std(1) / count**0.5 if count > 1 else torch.full_like(changes[:, 0], math.nan)


def _joined(parts: list[Likelihood], model: ScoreModel) -> Likelihood:
    """Batches as one, with warnings of large errors."""
    density, error, latent, truncation, step_error, nfe = zip(*parts, strict=True)
    errors = (torch.cat(truncation), torch.cat(step_error))
    found = Likelihood(torch.cat(density), torch.cat(error), torch.cat(latent), *errors, max(nfe))
    dim = math.prod(model.shape)
    below = found.truncation.detach().abs().mean().item() / dim
    steps = found.step_error.square().mean().sqrt().item() / dim
    by_probes = found.standard_error.detach().square().mean().sqrt().item() / dim
    if below > TRUNCATED:
        smallest = model.sde.span().noise_level[1].item()
        warnings.warn(
            f"log densities: {below:.2g} nats per dimension come from noise below the model's smallest level, "
            f"{smallest:.2g}: the data have finer details, and the density there is a guess, which the standard error "
            "does not hold; train with smaller noise",
            stacklevel=3,
        )
    if steps > COARSE and not steps < 2 * by_probes:  # NaN for one probe in adaptive steps
        warnings.warn(
            f"log densities: the steps are too large for an error below {steps:.2g} nats per dimension, which the "
            "standard error does not hold; raise the number of evaluations",
            stacklevel=3,
        )
    return found


def _prior_log_prob(model: ScoreModel, prior: Target | None, x_T: Tensor) -> Tensor:
    """log p_T(x_T) in nats, float64."""
    if prior is None:
        return model.sde.prior_log_prob(x_T.double(), model.sigma_data)
    level = model.sde.level(torch.tensor(model.sde.t_max, dtype=torch.float64, device=x_T.device))
    return prior.to(x_T.device, torch.float64).log_prob(x_T.double(), level.alpha, level.sigma)


class _Denoiser:
    """The denoiser for one batch, with estimates of its Jacobian's diagonal.

    Attributes:
        nfe: network evaluations of a sample so far.
    """

    def __init__(
        self,
        model: ScoreModel,
        cond: Condition,
        divergence: Divergence,
        noise: Noise,
        differentiable: bool,
        on_evaluation: Callable[[], None],
    ) -> None:
        self.model = model
        self.cond = cond
        self.divergence = divergence
        self.noise = noise
        self.differentiable = differentiable
        self.on_evaluation = on_evaluation
        self.nfe = 0

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """D, in the type of x."""
        self.on_evaluation()
        self.nfe += self.model.num_calls(level)
        dtype = self.model.dtype
        return self.model.denoise_at(x.to(dtype), level.to(x.device, dtype), self.cond).to(x.dtype)

    def with_diagonals(self, x: Tensor, level: Level, step: int) -> tuple[Tensor, Tensor]:
        """D `(B, *)`, and estimates `(P, B, dim)` of the diagonal of dD/dx, float64."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x if self.differentiable else x.detach().clone()
            x = x if x.requires_grad else x.requires_grad_()
            x0_hat = self(x, level)

            def products(v: Tensor) -> Tensor:
                options = {"retain_graph": True, "create_graph": self.differentiable}
                back = torch.autograd.grad(x0_hat, x, v, is_grads_batched=True, **options)[0]
                return (v * back).flatten(2).double()

            diagonals = self.divergence.diagonals(products, x, self.noise, step)
        return (x0_hat, diagonals) if self.differentiable else (x0_hat.detach(), diagonals.detach())


class _Followed(NamedTuple):
    """Where an inversion led: x_T, and the change of the log density with its variance and errors, each `(B,)`."""

    x_T: Tensor
    change: Tensor
    variance: Tensor
    truncation: Tensor
    step_error: Tensor


def _follow(denoiser: _Denoiser, flow: Inversion, x_0: Tensor) -> _Followed:
    """Follows an inversion from data, with the log density."""
    table = flow.table
    dim = x_0[0].numel()
    p, q, a, scale = (part.tolist() for part in (table.p, table.q, table.a, flow.scale))
    totals = flow.totals.tolist()
    below = flow.truncation.tolist()
    finer = (flow.totals - flow.coarse).tolist()
    b = table.b.tolist()
    x = scale[0] * x_0
    history = list[Tensor]()
    zero = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    change = zero + dim * math.log(scale[-1])
    truncation = zero
    difference = zero
    used = [k for k in range(len(table)) if totals[k] != 0 or below[k] != 0]  # rows whose divergence is needed
    variance = _Variance(denoiser.divergence.variance_left(dim), totals, used, zero)
    levels = table.level.to(x_0.device, denoiser.model.dtype)  # on the device before the loop
    for k in range(len(table)):
        if k in used:
            x0_hat, diagonals = denoiser.with_diagonals(x, levels[k], k)
            integrand = scale[k] * (p[k] * diagonals + q[k])  # (P, B, dim): entries of the divergence of h
            trace = integrand.mean(0).sum(1)
            change = change + totals[k] * trace
            truncation = truncation + below[k] * trace
            difference = difference + finer[k] * trace.detach()
            variance.add(k, integrand.detach())
        else:
            x0_hat = denoiser(x, levels[k])
        history.insert(0, p[k] * x0_hat + q[k] * x)
        x = a[k] * x + sum(weight * h for weight, h in zip(b[k], history, strict=False) if weight != 0)
        del history[len(b[k]) :]
    return _Followed(x, change, variance.total, truncation, difference.abs())


class _Variance:
    """The variance of a log density by probes, from the probes themselves.

    Args:
        left: the variance of the probes' mean, as a share of that of one probe; 0 for an exact divergence.
        totals: the weight of each row in the log density.
        used: the rows that have one.
        zero: zeros `(B,)`.
    """

    def __init__(self, left: float, totals: list[float], used: list[int], zero: Tensor) -> None:
        self._left = left
        self._totals = totals
        self._used = used
        self._previous: tuple[int, Tensor] | None = None
        self.total = zero

    def add(self, row: int, integrand: Tensor) -> None:
        """Takes on a row's entries `(P, B, dim)`; rows come in order."""
        if self._left == 0:
            return
        if len(integrand) > 1:
            spread = integrand.var(0).sum(1)
            self.total = self.total + self._totals[row] ** 2 * self._left * 2 * spread
            return
        entries = integrand[0]
        if self._previous is not None:  # half of a squared difference estimates the variance of either row
            before, earlier = self._previous
            weight = self._pair_weight(before) + self._pair_weight(row)
            self.total = self.total + weight * (entries - earlier).square().sum(1)
        self._previous = (row, entries)

    def _pair_weight(self, row: int) -> float:
        """The weight of each neighbouring difference in a row's variance.

        A row's variance is the average over its two neighbouring differences, or the one difference at either end.
        """
        at_end = row in (self._used[0], self._used[-1])
        return self._totals[row] ** 2 * (1.0 if at_end else 0.5)


def _odeint(denoiser: _Denoiser, x: Tensor, ends: Tensor, rtol: float, atol: float) -> tuple[Tensor, Tensor]:
    """From x at the first noise level of `ends` to the last: x_T, and the changes `(B, P)` of each probe."""
    sde = denoiser.model.sde
    dim = x[0].numel()
    velocity_integrand = VelocityIntegrand(denoiser.model.sigma_data)
    phi = velocity_integrand.measure(ends).to(x.device)
    bounds = phi.tolist()
    evaluations = BoundedEvaluations("adaptive_log_prob")
    scale = velocity_integrand.scale(sde.at_noise_level(ends)).tolist()

    def velocity(at: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        at = at.double().cpu().clamp(*bounds)  # torchdiffeq's guess of a first step may go beyond the ends
        level = sde.at_noise_level(velocity_integrand.noise_level(at))
        wide = velocity_integrand.scale(level).item()
        p, q = (part.item() for part in velocity_integrand.factors(level))
        x_t = wide * state[0]
        x0_hat, diagonals = denoiser.with_diagonals(x_t, level, 0)
        evaluations.add(x0_hat, level.noise_level)
        return p * x0_hat + q * x_t, wide * (p * diagonals.sum(2).T / dim + q)

    def norm(error: tuple[Tensor, Tensor]) -> Tensor:
        of_y, of_density = error
        return torch.maximum(of_y.flatten(1).square().mean(1).max().sqrt(), of_density.abs().max())

    probes = denoiser.divergence.diagonals(lambda v: v.flatten(2).double(), x, denoiser.noise, 0)
    changes = torch.zeros(len(x), len(probes), dtype=torch.float64, device=x.device)
    y, changes = dormand_prince(velocity, (x / scale[0], changes), phi, norm, rtol, atol)
    return scale[1] * y, dim * (changes + math.log(scale[1] / scale[0]))

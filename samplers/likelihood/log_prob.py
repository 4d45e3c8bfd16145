r"""Exact log densities by the probability flow.

The flow carries data x_0 to noise x_T, and along it the log density changes by the divergence of its velocity (Chen et
al. 2018, theorem 1; Song et al. 2021, appendix D.2). In the velocity integrand, dy = h dphi with h = p D + q x and
x = scale y, so

    log p(x_0) = log p_T(x_T) + dim log scale(t_max) + int scale (p tr dD/dx + q dim) dphi,

from phi = 0, the data themselves, on. One evaluation of the model gives D and what is needed of its Jacobian
(`samplers.likelihood.divergence`); steps and weights are those of `samplers.likelihood.inversion`, and the divergence
is integrated by the
weights that h has in the whole way. The steps being fixed, fresh probes in every one of them leave the log density
unbiased, and its standard error is known from the probes themselves.

Three parts of the error are no matter of steps, and are kept apart:

- The model knows no noise level below that of t_min. There h is continued as the odd function through its first values;
  what this adds to the log density is `truncation`.
- p_T is no more than close to a Gaussian. A prior that has the data's mean and covariance (`prior=Gaussian(mean,
  covariance)`, seen at t_max) is closer than N(0, sigma_T^2 I), whose error is 4e-4 to 2e-3 nats per dimension on the
  mixtures of `benchmarks/divergence.py`: 1e-5 and less is left in the plane under VP, sub-VP and EDM.
- The density is that of the model's flow. The reverse SDE of a learned score has another one, which is bounded by
  `scoresde.bounds`.

With one probe a step the variance is taken from the differences of neighbouring steps, entry by entry: v_i (J v)_i has
the mean J_ii, which changes little between steps, and the variance sum_{j != i} J_ij^2, whose sum over i is half of the
trace's, for a symmetric J. With several probes the steps are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.integrands import VelocityIntegrand, level_at
from samplers.likelihood.divergence import Divergence, Exact, Probes
from samplers.likelihood.inversion import Encoding, encoding, encoding_at
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, check_data
from scoresde.sde import Level
from scoresde.targets import Target

EXACT_UP_TO = 32  # entries of a sample, where the user does not choose


class Likelihood(NamedTuple):
    """Log densities of samples.

    Attributes:
        log_prob: `(B,)` nats, of densities in the units of x_0.
        standard_error: `(B,)` of the random probes; 0 for an exact divergence.
        latent: `(B, *shape)` x_T.
        truncation: `(B,)` the part of log_prob that comes from noise levels below the model's least.
        nfe: network evaluations of a sample.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    truncation: Tensor
    nfe: int


def log_prob(
    model: ScoreModel,
    x_0: Tensor,
    cond: Tensor | None = None,
    *,
    num_evaluations: int = 64,
    divergence: Divergence | None = None,
    prior: Target | None = None,
    sd: float = 0.7,
    seed: int = 0,
    batch_size: int = 500,
    differentiable: bool = False,
    tell: Callable[[], None] = lambda: None,
) -> Likelihood:
    """Log density of data under the probability flow of a model, in fixed steps of order 4.

    Args:
        model, x_0, cond: whose flow, of which data `(B, *shape)` in the model's units, under which conditions. The
            state has the type of x_0: float64 data make a float64 integration around a model of any type.
        num_evaluations: of each sample; the divergence comes with them.
        divergence: `Exact()` or `Probes(...)`; None for the former up to 32 entries, and one probe a step above.
        prior: the data's distribution as it is seen at t_max, such as a `Gaussian` of their mean and covariance; None
            for N(0, sigma(t_max)^2 I).
        sd: the scale of the data.
        seed: of the probes; a sample's are the same in every batch.
        batch_size: samples at a time.
        differentiable: keep the graph, for gradients with respect to x_0 and the model's parameters.
        tell: called after each evaluation.

    Raises:
        UsageError: for data of another shape, or that are not finite.
    """
    check_data(model, x_0, cond)
    way = encoding(model.sde, num_evaluations, sd)
    divergence = divergence or (Exact() if x_0[0].numel() <= EXACT_UP_TO else Probes())
    indices, parts = torch.arange(len(x_0), device=x_0.device), []
    with model.eval_mode(), torch.set_grad_enabled(differentiable):
        for first in range(0, len(x_0), batch_size):
            part = slice(first, first + batch_size)
            noise, given = Noise(seed, indices[part]), None if cond is None else cond[part]
            flow = _Flow(model, given, divergence, noise, differentiable, tell)
            x_T, change, variance, truncation = _follow(flow, way, x_0[part])
            parts.append((_prior(model, prior, x_T) + change, variance.sqrt(), x_T, truncation))
    return _joined(parts, num_evaluations)


def adaptive_log_prob(
    model: ScoreModel,
    x_0: Tensor,
    cond: Tensor | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    divergence: Divergence | None = None,
    prior: Target | None = None,
    sd: float = 0.7,
    seed: int = 0,
    batch_size: int = 500,
    tell: Callable[[], None] = lambda: None,
) -> Likelihood:
    """The same by torchdiffeq's Dormand and Prince method, its error per step within atol + rtol |y| on each sample.

    The noise levels up to 1.5 times the model's least are crossed in fixed steps. Probes are drawn once for
    the whole way, as error control asks: a standard error, from their differences, is known from two probes on, and is
    not a number for one. Arguments as in `log_prob`; `nfe` is that of the batch with most.
    """
    require(rtol > 0 and atol > 0, f"rtol={rtol}, atol={atol}: both must be positive")
    check_data(model, x_0, cond)
    least, largest = model.sde.noise_level(torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64))
    low = least * torch.linspace(1, 1.5, 4, dtype=torch.float64)
    below, ends = encoding_at(level_at(model.sde, low), sd), torch.stack([low[-1], largest])
    divergence = divergence or (Exact() if x_0[0].numel() <= EXACT_UP_TO else Probes())
    indices, parts, nfe = torch.arange(len(x_0), device=x_0.device), [], 0
    with model.eval_mode(), torch.no_grad():
        for first in range(0, len(x_0), batch_size):
            part = slice(first, first + batch_size)
            noise, given = Noise(seed, indices[part]), None if cond is None else cond[part]
            flow = _Flow(model, given, divergence, noise, False, tell)
            x, change, _, truncation = _follow(flow, below, x_0[part])
            x_T, changes = _odeint(flow, x, ends, sd, rtol, atol)
            dim, count = x_0[0].numel(), changes.shape[1]
            exact = divergence.variance_left(dim) == 0
            spread = changes.std(1) / count**0.5 if count > 1 else torch.full_like(change, math.nan)
            error = torch.zeros_like(change) if exact else spread
            parts.append((_prior(model, prior, x_T) + change + changes.mean(1), error, x_T, truncation))
            nfe = max(nfe, flow.evaluations)
    return _joined(parts, nfe)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor, Tensor]], nfe: int) -> Likelihood:
    """The batches one after the other."""
    density, error, latent, truncation = (torch.cat(column) for column in zip(*parts, strict=True))
    return Likelihood(density, error, latent, truncation, nfe)


def _prior(model: ScoreModel, prior: Target | None, x_T: Tensor) -> Tensor:
    """log p_T(x_T) in nats, float64."""
    if prior is None:
        return model.sde.prior_log_prob(x_T.double())
    level = model.sde.level(torch.tensor(model.sde.t_max, dtype=torch.float64, device=x_T.device))
    return prior.to(x_T.device, torch.float64).log_prob(x_T.double(), level.alpha, level.sigma)


class _Flow:
    """The denoiser for one batch, with estimates of its Jacobian's diagonal."""

    def __init__(
        self,
        model: ScoreModel,
        cond: Tensor | None,
        divergence: Divergence,
        noise: Noise,
        differentiable: bool,
        tell: Callable[[], None],
    ) -> None:
        self.model, self.cond, self.divergence, self.noise = model, cond, divergence, noise
        self.differentiable, self.tell, self.evaluations = differentiable, tell, 0

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """D, in the type of x."""
        self.tell()
        self.evaluations += 1
        like = self.model.like()
        return self.model.denoise_at(x.to(like.dtype), level.like(like), self.cond).to(x.dtype)

    def __call__(self, x: Tensor, level: Level, step: int) -> tuple[Tensor, Tensor]:
        """D `(B, *)`, and estimates `(P, B, dim)` of the diagonal of dD/dx, float64."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x if self.differentiable else x.detach().clone()
            x = x if x.requires_grad else x.requires_grad_()
            x0_hat = self.denoise(x, level)

            def products(v: Tensor) -> Tensor:
                options = {"retain_graph": True, "create_graph": self.differentiable}
                back = torch.autograd.grad(x0_hat, x, v, is_grads_batched=True, **options)[0]
                return (v * back).flatten(2).double()

            diagonals = self.divergence.diagonals(products, x, self.noise, step)
        return (x0_hat, diagonals) if self.differentiable else (x0_hat.detach(), diagonals.detach())


def _follow(flow: _Flow, way: Encoding, x_0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where an encoding leads, the change of the log density on the way, its variance, and the part of truncation."""
    table, dim = way.table, x_0[0].numel()
    p, q, a, scale = (part.tolist() for part in (table.p, table.q, table.a, way.scale))
    totals, below, b = way.totals.tolist(), way.truncation.tolist(), table.b.tolist()
    x, history = scale[0] * x_0, list[Tensor]()
    change = truncation = variance = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    change = change + dim * math.log(scale[-1])
    looked_at = [k for k in range(len(table)) if totals[k] != 0 or below[k] != 0]
    before: Tensor | None = None
    levels = table.level.like(flow.model.like())  # on the device before the loop
    for k in range(len(table)):
        level = levels.at(k)
        if k in looked_at:
            x0_hat, diagonals = flow(x, level, k)
            integrand = scale[k] * (p[k] * diagonals + q[k])  # (P, B, dim): entries of the divergence of h
            trace = integrand.mean(0).sum(1)
            change, truncation = change + totals[k] * trace, truncation + below[k] * trace
            left = flow.divergence.variance_left(dim)
            if left and len(integrand) > 1:
                variance = variance + totals[k] ** 2 * left * 2 * integrand.detach().var(0).sum(1)
            elif left:
                integrand = integrand[0].detach()
                if before is not None:  # half the square of a difference stands for the variance of either side
                    share = _share(totals, looked_at, k)
                    variance = variance + share * (integrand - before).square().sum(1)
                before = integrand
        else:
            x0_hat = flow.denoise(x, level)
        history.insert(0, p[k] * x0_hat + q[k] * x)
        x = a[k] * x + sum(weight * h for weight, h in zip(b[k], history, strict=False) if weight != 0)
        del history[len(b[k]) :]
    return x, change, variance, truncation


def _share(totals: list[float], looked_at: list[int], k: int) -> float:
    """The weight of the squared difference between a row and the one before: each row's variance is that of its pairs'
    mean, which are two but for the first and the last row."""
    previous = looked_at[looked_at.index(k) - 1]
    return sum(totals[row] ** 2 * (1.0 if row in (looked_at[0], looked_at[-1]) else 0.5) for row in (previous, k))


def _odeint(flow: _Flow, x: Tensor, ends: Tensor, sd: float, rtol: float, atol: float) -> tuple[Tensor, Tensor]:
    """From x at the first noise level of `ends` to the last: x_T, and the changes `(B, P)` of each probe."""
    from torchdiffeq import odeint

    integrand, sde, dim = VelocityIntegrand(sd), flow.model.sde, x[0].numel()
    phi, level_ends = integrand.measure(ends).to(x.device), level_at(sde, ends)
    scale = integrand.scale(level_ends).tolist()

    def velocity(at: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        level = level_at(sde, integrand.noise_level(at.double().cpu()))
        wide, (p, q) = integrand.scale(level).item(), (part.item() for part in integrand.factors(level))
        x_t = wide * state[0]
        x0_hat, diagonals = flow(x_t, level, 0)
        return p * x0_hat + q * x_t, wide * (p * diagonals.sum(2).T / dim + q)

    def norm(error: tuple[Tensor, Tensor]) -> Tensor:
        of_y, of_density = error
        return torch.maximum(of_y.flatten(1).square().mean(1).max().sqrt(), of_density.abs().max())

    first = flow.divergence.diagonals(lambda v: v.flatten(2).double(), x, flow.noise, 0)
    changes = torch.zeros(len(x), len(first), dtype=torch.float64, device=x.device)
    options = {"norm": norm, "step_t": phi[1:], "dtype": torch.float64}
    y, changes = odeint(velocity, (x / scale[0], changes), phi, rtol=rtol, atol=atol, method="dopri5", options=options)
    return scale[1] * y[-1], dim * (changes[-1] + math.log(scale[1] / scale[0]))

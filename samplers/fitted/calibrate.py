r"""Calibration: the table of one number of evaluations, fitted to a model against its own converged flow.

With n evaluations at noise levels r_0 > ... > r_{n-1}, from noise of level r_0, every explicit linear solver of the
probability flow is, in the velocity integrand (`samplers.integrands`), with phi = atan(r / sd),

    y_{k+1} = y_k + (phi_{k+1} - phi_k) sum_{j<=k} w_kj h_j,        theta = (w_kj, log r_0, ..., log r_{n-1}),

n (n + 1) / 2 + n numbers, and the best of them for a model is found by least squares: with e(theta) the difference
between the table's end and where the converged flow leads from the same noise,

    min_theta  sum_samples rho(|e|),    rho growing as the square to 4 times the median, and linearly from there.

**Gauss and Newton's method, by random projections.** The change d of theta solves min |J d + e|^2 with J = de/dtheta.
J has a row for each entry of each sample, but a projection of it costs one backward pass: for v of independent random
signs, E (v . (J d + e))^2 = |J d + e|^2. As the parameters enter each sample by itself, one pass yields the rows v . J
of a whole batch: thousands of equations for some fifty unknowns after a few passes, and a second-order method where
gradient descent on the same problem needs hundreds. Levenberg and Marquardt's damping is chosen in every iteration from
six by the error on noises that are held out; what is best there is kept, and nothing else.

Where it ends depends on the noise levels that it starts from. So it starts three times, from the table of a pilot and
from tables on even and early nodes (`samplers.fitted.nodes`), and the best after three iterations goes on. A noise
level
that would leave the SDE's range stops at its end, and the step is solved again for the rest. Tables do not carry over
to other models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, final

import torch
from torch import Tensor

from samplers.fitted.least_squares import fit
from samplers.fitted.nodes import even_nodes
from samplers.fitted.reference import NUM_SAMPLES, Coupling, pilot_run, trimmed_error
from samplers.fitted.tables import FittedSampler, FittedTable
from samplers.integrands import VelocityIntegrand
from samplers.table import Loop
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

STARTS, FIRST, REST = 3, 3, 7
ITERATIONS = STARTS * FIRST + REST  # the first ones of all starts, and the rest of the best
SAMPLES, PROJECTIONS = 256, 3  # of an iteration
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # as shares of the diagonal
HELD_OUT = 5  # one noise of so many
LEAST_NOISES = 64


class Calibration(NamedTuple):
    """A sampler with the calibrated table in it, and the errors on the noises held out, before and after."""

    sampler: FittedSampler
    before: float
    after: float


@torch.no_grad()
def calibrate(
    model: ScoreModel,
    sampler: FittedSampler,
    num_steps: int,
    truth: Coupling,
    *,
    seed: int = 0,
    batch_size: int = 64,
    tell: Callable[[int, float], None] = lambda iteration, error: None,
) -> Calibration:
    """Fits the table of `num_steps` evaluations to a model; where nothing is gained, the table is as it was.

    Args:
        model: what will be sampled from; differentiable in x_t and t.
        sampler: whose table is the first start, and is kept where nothing is gained (`pilot(model)`).
        num_steps: which table.
        truth: ends of the model's flow, from 64 noises or more (`samplers.fitted.reference.converged`); one in five is
        held
            out.
        seed, batch_size: of the projections and the order of the samples; how many are differentiated at once.
        tell: called with the iteration, up to `ITERATIONS`, and the least error so far.

    Example:
        sampler = pilot(model)
        truth = reference_coupling(model, sampler.fits[8].sd, num_samples=640)
        sampler, before, after = calibrate(model, sampler, 8, truth)
    """
    count = len(truth.start)
    require(count >= LEAST_NOISES, f"num_samples={count}: calibration needs at least {LEAST_NOISES} noises")
    require(num_steps in sampler.fits, f"num_steps={num_steps}: need one of {min(sampler.fits)} to {max(sampler.fits)}")
    run = pilot_run(model, None if truth.cond is None else truth.cond[:NUM_SAMPLES])
    own_starts = (fit(run, model.sde, even_nodes(run, model.sde, num_steps, early)).fit for early in (False, True))
    generator = torch.Generator().manual_seed(seed)
    with model.eval_mode():
        descents = [_Descent(model, start, truth) for start in (sampler.fits[num_steps], *own_starts)]
        before = descents[0].error
        for iteration, descent in enumerate(_turns(descents), 1):
            descent.iterate(batch_size, generator)
            tell(iteration, min(each.error for each in descents))
    if descent.error < before:  # the last that had its turn is the best of them
        sampler = FittedSampler({**sampler.fits, num_steps: descent.solver.fit(descent.theta)})
    return Calibration(sampler, before, descent.error)


def _turns(descents: list[_Descent]) -> Iterator[_Descent]:
    """Whose iteration is next: all have the first ones, and the one that is best then has the rest."""
    for descent in descents:
        yield from repeat(descent, FIRST)
    yield from repeat(min(descents, key=lambda descent: descent.error), REST)


class _Descent:
    """From one start: the best parameters so far, and their error on the noises that are held out."""

    def __init__(self, model: ScoreModel, start: FittedTable, truth: Coupling) -> None:
        count = len(truth.start) // HELD_OUT
        self.held_out, self.seen = truth.part(slice(count)), truth.part(slice(count, None))
        self.solver = _Solver.of(start, model)
        self.theta = self.solver.theta_of(start)
        self.error = self.solver.error(self.theta, self.held_out)

    def iterate(self, batch_size: int, generator: torch.Generator) -> None:
        batch = self.seen.part(torch.randperm(len(self.seen.start), generator=generator)[:SAMPLES])
        theta = self.theta
        normal, gradient = self.solver.equations(theta, batch, batch_size, generator)
        for damping in DAMPINGS:
            candidate = self.solver.step(theta, normal, gradient, damping)
            if self.solver.allows(candidate):
                error = self.solver.error(candidate, self.held_out)
                if error < self.error:
                    self.error, self.theta = error, candidate


def _solution(normal: Tensor, gradient: Tensor, damping: float, known: Tensor) -> Tensor:
    """The change that solves the damped normal equations; what is known of it, and not NaN, is kept."""
    size = (normal.diagonal() + 1e-12 * normal.diagonal().max()).sqrt()  # where nothing depends on it, it stays
    matrix = normal / size[:, None] / size + damping * torch.eye(len(size), dtype=normal.dtype)
    free, change = known.isnan(), known.nan_to_num() * size
    right = -gradient / size - matrix @ change
    change[free] = torch.linalg.solve(matrix[free][:, free], right[free])
    return change / size


@final
@dataclass(frozen=True)
class _Solver:
    """What is fixed of a table: the model, the integrand, the number of evaluations, and the noise level at t_max."""

    model: ScoreModel
    integrand: VelocityIntegrand
    num_steps: int
    largest: float

    @classmethod
    def of(cls, fit: FittedTable, model: ScoreModel) -> _Solver:
        return cls(model, VelocityIntegrand(fit.sd), len(fit.noise_level), fit.largest)

    def theta_of(self, fit: FittedTable) -> Tensor:
        """The parameters of a table: w_kj row by row, then log r_0, ..., log r_{n-1}."""
        n = self.num_steps
        w = torch.zeros(n, n, dtype=torch.float64)
        for k in range(n):
            known = min(k + 1, fit.weights.shape[1])
            w[k, k + 1 - known : k + 1] = fit.weights[k, :known].flip(0)
        row, column = torch.tril_indices(n, n)
        return torch.cat([(w / self._step(fit.noise_level)[:, None])[row, column], fit.noise_level.log()])

    def fit(self, theta: Tensor) -> FittedTable:
        """The table of some parameters."""
        level, w = self._parts(theta)
        n = self.num_steps
        newest_first = torch.zeros_like(w)
        for k in range(n):
            newest_first[k, : k + 1] = w[k, : k + 1].flip(0)
        return FittedTable(level, self.largest, self.integrand.sd, newest_first)

    def _step(self, noise_level: Tensor) -> Tensor:
        """The steps in phi between noise levels `(..., n)`, the last to 0."""
        phi = self.integrand.measure(noise_level)
        return torch.cat([phi[..., 1:], torch.zeros_like(phi[..., :1])], -1) - phi

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels `(..., n)` and weights `(..., n, n)` of parameters `(..., P)`."""
        n = self.num_steps
        row, column = torch.tril_indices(n, n)
        level = theta[..., len(row) :].exp()
        w = theta.new_zeros(*theta.shape[:-1], n, n)
        w[..., row, column] = theta[..., : len(row)]
        return level, self._step(level)[..., None] * w

    def step(self, theta: Tensor, normal: Tensor, gradient: Tensor, damping: float) -> Tensor:
        """Where a damped step leads; noise levels that would leave the SDE's range stop at its end."""
        free = torch.full_like(theta, torch.nan)
        there = theta + _solution(normal, gradient, damping, free)
        within = self._within(there)
        if not torch.equal(there, within):
            known = torch.where(there == within, free, within - theta)
            there = self._within(theta + _solution(normal, gradient, damping, known))
        return there

    def _within(self, theta: Tensor) -> Tensor:
        """Parameters with the noise levels in the SDE's range."""
        least = self.model.sde.noise_level(torch.tensor(self.model.sde.t_min, dtype=torch.float64)).item()
        levels = slice(len(theta) - self.num_steps, None)
        theta = theta.clone()
        theta[levels] = theta[levels].clamp(math.log(least), math.log(self.largest))
        return theta

    def allows(self, theta: Tensor) -> bool:
        """Whether the noise levels fall strictly."""
        return bool(theta.isfinite().all() and (self._parts(theta)[0].diff() < 0).all())

    def error(self, theta: Tensor, truth: Coupling) -> float:
        """The trimmed RMS of the table's error."""
        table = self.fit(theta).table(self.model.sde)
        x_T = truth.start_of(table, self.model.sde)
        x = Loop(table, self.model, x_T)(x_T, Noise(0, torch.arange(0)), truth.cond)
        return trimmed_error(x, truth.end)

    def end(self, theta: Tensor, x_T: Tensor, cond: Tensor | None) -> Tensor:
        """Where the table leads, with parameters `(B, P)` of each sample's own: `Table`'s loop, differentiable."""
        (noise_level, weights), sde = self._parts(theta), self.model.sde
        level = _level(sde, noise_level)
        largest = sde.sigma(torch.tensor(sde.t_max, dtype=torch.float64)).item()
        p, q = (part.to(x_T.dtype) for part in self.integrand.factors(level))
        scale = self.integrand.scale(level).to(x_T.dtype)
        level, weights = Level(*(part.to(x_T.dtype) for part in level)), weights.to(x_T.dtype)
        shape = (-1, *[1] * (x_T.ndim - 1))
        y = x_T * (level.sigma[:, 0] / largest / scale[:, 0]).view(shape)
        h = x_T.new_zeros(len(x_T), 0, x_T[0].numel())
        for k in range(self.num_steps):
            x = y * scale[:, k].view(shape)
            denoised = self.model.denoise_at(x, Level(*(part[:, k] for part in level)), cond)
            new = denoised * p[:, k].view(shape) + x * q[:, k].view(shape)
            h = torch.cat([h, new.flatten(1)[:, None]], 1)
            y = y + torch.einsum("bk,bkn->bn", weights[:, k, : k + 1], h).view_as(y)
        return y

    def equations(
        self, theta: Tensor, truth: Coupling, batch_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Gauss and Newton's normal matrix J^T J and gradient J^T e, by random projections of the errors."""
        normal, gradient = torch.zeros(len(theta), len(theta), dtype=torch.float64), torch.zeros_like(theta)
        for first in range(0, len(truth.start), batch_size):
            part = truth.part(slice(first, first + batch_size))
            own = theta.to(part.start.device).repeat(len(part.start), 1).requires_grad_()
            with torch.enable_grad():
                end = self.end(own, part.start, part.cond)
            error = (end - part.end).detach()
            size = error.double().flatten(1).square().mean(1).sqrt()
            share = (1 / torch.maximum(size, 4 * size.median())).nan_to_num(posinf=0)[:, None]  # of the linear part
            for left in reversed(range(PROJECTIONS)):
                signs = (2 * torch.randint(0, 2, end.shape, generator=generator) - 1).to(end)
                (rows,) = torch.autograd.grad(end, own, signs, retain_graph=left > 0)
                projected = (error * signs).double().flatten(1).sum(1)
                normal += ((rows * share).T @ rows).cpu()
                gradient += ((rows * share).T @ projected).cpu()
        return normal, gradient


def _level(sde: SDE, noise_level: Tensor) -> Level:
    """The level of an SDE at noise levels, with its derivative, whether or not `sde.time` has one.

    d(log-SNR)/dt = -g^2 / sigma^2.
    """
    log_snr = -2 * noise_level.log()
    with torch.no_grad():
        t = sde.time(log_snr).clamp(sde.t_min, sde.t_max)
        rate = -((sde.sigma(t) / sde.diffusion(t)) ** 2)
    return sde.level(t + rate * (log_snr - log_snr.detach()))

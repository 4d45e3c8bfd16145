r"""Calibration: the table for a given number of evaluations, fitted to a model against its own converged flow.

With n evaluations at noise levels r_0 > ... > r_{n-1}, from noise of level r_0, every explicit quadrature in the
velocity integrand dy = h dphi (`samplers.integrands`), phi = atan(r / sigma_data), is

    y_{k+1} = y_k + (phi_{k+1} - phi_k) sum_{j<=k} w_kj h_j,        theta = (w_kj, log r_0, ..., log r_{n-1}),

n (n + 1) / 2 + n numbers. The best of them for a model is found by least squares. With e_i(theta) the difference
between the table's end and the converged flow's end for noise i,

    min_theta  sum_i rho(|e_i|),    rho growing as the square up to 4 times the median, and linearly beyond.

    1. Project. The Gauss-Newton step d solves min sum_i omega_i |J_i d + e_i|^2 with J_i = de_i/dtheta and
       omega_i = 1 / max(|e_i|, 4 median). J_i has a row for each entry of a sample, but one backward pass gives v^T J_i
       for a vector v, and for independent random signs E (v^T (J_i d + e_i))^2 = |J_i d + e_i|^2. Each sample has its
       own copy of theta, so one pass serves a whole batch: 768 equations from 12 passes, for 44 unknowns at n = 8.
    2. Solve. The damped normal equations (Levenberg-Marquardt) are solved for six dampings. A noise level that would
       leave the SDE's range is fixed at its bound, and the other unknowns are solved for again.
    3. Accept. Each candidate whose noise levels fall strictly is run on the validation noises. The one with the
       smallest trimmed RMS error replaces theta if that lowers it.
    4. Multi-start. The optimum depends on the initial noise levels, so there are three starts: the pilot run's table,
       and tables on equal-error and early nodes (`samplers.fitted.nodes`). All get three iterations; the best one then
       gets seven more.

The validation noises also choose the table, so the error that is reported for it is slightly optimistic. Gradient
descent on the same problem needs hundreds of iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from samplers.fitted.least_squares import fit_weights
from samplers.fitted.nodes import equal_error_nodes
from samplers.fitted.reference import NUM_SAMPLES, Coupling, reference_run, sample_errors, trimmed_error
from samplers.fitted.tables import FittedSampler, FittedTable
from samplers.integrands import VelocityIntegrand
from scoresde import condition
from scoresde._batches import GRAPH, batches, choose_batch_size
from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.models.split import SplitModel
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

STARTS = 3
TRIAL_ITERATIONS = 3  # for each start
FINAL_ITERATIONS = 7  # then, for the best start
ITERATIONS = STARTS * TRIAL_ITERATIONS + FINAL_ITERATIONS
SAMPLES = 256  # of an iteration
PROJECTIONS = 3  # of each sample in an iteration
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)  # relative to the diagonal
VALIDATION_ONE_IN = 5  # one noise in this many validates
MIN_NOISES = 64
ROBUST = 4.0  # multiple of the median error beyond which errors count linearly


class Calibration(NamedTuple):
    """A sampler with the calibrated table in it, and the errors on the validation noises, before and after."""

    sampler: FittedSampler
    before: float
    after: float


@torch.no_grad()
def calibrate(
    model: ScoreModel,
    sampler: FittedSampler,
    num_steps: int,
    coupling: Coupling,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    on_iteration: Callable[[float], None] = lambda error: None,
) -> Calibration:
    """Fits the table of `num_steps` evaluations to a model; if nothing is gained, the table is unchanged.

    Two of the three starts need a pilot run of their own, with the first conditions of the coupling.

    Args:
        model: what will be sampled from; differentiable in x_t and t.
        sampler: usually `fit_sampler(model)`; its table is the first start.
        num_steps: the number of evaluations of the table.
        coupling: at least 64 noises and where the model's flow leads from them (`reference_coupling`); one in five
            validates.
        seed: of the projections and of the samples of each iteration.
        batch_size: samples that are differentiated at a time; by default as many as need little memory.
        on_iteration: called after each of `ITERATIONS` iterations with the smallest error so far.

    Example:
        sampler = fit_sampler(model)
        coupling = reference_coupling(model, sampler.tables[8].sigma_data, num_samples=640)
        sampler, before, after = calibrate(model, sampler, 8, coupling)
    """
    count = len(coupling.x_T)
    require(
        count >= MIN_NOISES,
        f"coupling: has {count} noises; calibration needs at least {MIN_NOISES} (reference_coupling's num_samples)",
    )
    fitted = sampler.tables
    require(num_steps in fitted, f"num_steps={num_steps}: need one of {min(fitted)} to {max(fitted)}")
    forward = choose_batch_size(batch_size, model.shape, model.device)
    size = choose_batch_size(batch_size, model.shape, model.device, graphs=graphs_kept(model, num_steps))
    model = SplitModel(model, forward)
    reference = reference_run(model, condition.take(coupling.cond, slice(NUM_SAMPLES)))
    own_nodes = [equal_error_nodes(reference, model.sde, num_steps, early) for early in (False, True)]
    starts = [fitted[num_steps], *(fit_weights(reference, model.sde, nodes).table for nodes in own_nodes)]
    generator = torch.Generator().manual_seed(seed)
    with model.eval_mode():
        searches = [_Search(model, start, coupling) for start in starts]
        before = searches[0].error
        for search in _schedule(searches):
            search.iterate(size, generator)
            on_iteration(min(each.error for each in searches))
    best = min(searches, key=lambda each: each.error)
    if best.error < before:
        sampler = FittedSampler({**fitted, num_steps: best.problem.fitted_of(best.theta)})
    return Calibration(sampler, before, best.error)


def graphs_kept(model: ScoreModel, num_steps: int) -> int:
    """The evaluations whose graphs are kept at a time: all of a table, or one if those of a single sample are large.

    Then each is computed again in the backward pass, which takes half as long again.
    """
    everything = choose_batch_size(None, model.shape, model.device) // GRAPH
    return num_steps if num_steps <= everything else 1


def _schedule(searches: Sequence[_Search]) -> Iterator[_Search]:
    """TRIAL_ITERATIONS for every start, then FINAL_ITERATIONS for the best one."""
    for search in searches:
        for _ in range(TRIAL_ITERATIONS):
            yield search
    best = min(searches, key=lambda each: each.error)
    for _ in range(FINAL_ITERATIONS):
        yield best


class _Search:
    """The best parameters that were found from one start, and their error on the validation noises."""

    def __init__(self, model: ScoreModel, start: FittedTable, coupling: Coupling) -> None:
        count = len(coupling.x_T) // VALIDATION_ONE_IN
        self.validation = coupling.take(slice(count))
        self.training = coupling.take(slice(count, None))
        self.problem = _Problem(model, start.integrand, len(start.noise_level), start.largest)
        self.theta = self.problem.theta_of(start)
        self.error, self.median = self.problem.error(self.theta, self.validation)

    def iterate(self, batch_size: int, generator: torch.Generator) -> None:
        """One Gauss-Newton iteration: the best of the dampings is accepted if it lowers the error."""
        chosen = torch.randperm(len(self.training.x_T), generator=generator)[:SAMPLES]
        theta = self.theta
        seed = int(torch.randint(2**62, (), generator=generator))
        normal, gradient = self.problem.equations(
            theta, self.training, chosen, ROBUST * self.median, Noise(seed, chosen), batch_size
        )
        for damping in DAMPINGS:
            candidate = self.problem.step(theta, normal, gradient, damping)
            if self.problem.allows(candidate):
                error, median = self.problem.error(candidate, self.validation)
                if error < self.error:
                    self.error = error
                    self.median = median
                    self.theta = candidate


def _solution(normal: Tensor, gradient: Tensor, damping: float, known: Tensor) -> Tensor:
    """The change that solves the damped normal equations; where `known` is not NaN, the change is prescribed."""
    unit = (normal.diagonal() + 1e-12 * normal.diagonal().max()).sqrt()  # a parameter without influence stays
    matrix = normal / unit[:, None] / unit + damping * torch.eye(len(unit), dtype=normal.dtype)
    free = known.isnan()
    change = known.nan_to_num() * unit
    right = -gradient / unit - matrix @ change
    change[free] = torch.linalg.solve(matrix[free][:, free], right[free])
    return change / unit


@final
@dataclass(frozen=True)
class _Problem:
    """The least-squares problem for a given number of evaluations, with parameters theta.

    Attributes:
        model: what is sampled from.
        integrand: the integrand in which steps are sums.
        num_steps: the number of evaluations.
        largest: the noise level at t_max.
    """

    model: ScoreModel
    integrand: VelocityIntegrand
    num_steps: int
    largest: float

    def theta_of(self, table: FittedTable) -> Tensor:
        """The parameters of a table: w_kj row by row, then log r_0, ..., log r_{n-1}."""
        n = self.num_steps
        w = torch.zeros(n, n, dtype=torch.float64)
        for k in range(n):
            count = min(k + 1, table.weights.shape[1])
            w[k, k + 1 - count : k + 1] = table.weights[k, :count].flip(0)
        row, column = torch.tril_indices(n, n)
        return torch.cat([(w / self._phi_steps(table.noise_level)[:, None])[row, column], table.noise_level.log()])

    def fitted_of(self, theta: Tensor) -> FittedTable:
        """The table of some parameters."""
        noise_level, w = self._unpack(theta)
        newest_first = torch.zeros_like(w)
        for k in range(self.num_steps):
            newest_first[k, : k + 1] = w[k, : k + 1].flip(0)
        return FittedTable(noise_level, self.largest, self.integrand.sigma_data, newest_first)

    def _phi_steps(self, noise_level: Tensor) -> Tensor:
        """The steps in phi between noise levels `(..., n)`, the last to 0."""
        phi = self.integrand.measure(noise_level)
        return torch.cat([phi[..., 1:], torch.zeros_like(phi[..., :1])], -1) - phi

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Noise levels `(..., n)` and weights `(..., n, n)` of parameters `(..., P)`."""
        n = self.num_steps
        row, column = torch.tril_indices(n, n)
        noise_level = theta[..., len(row) :].exp()
        w = theta.new_zeros(*theta.shape[:-1], n, n)
        w[..., row, column] = theta[..., : len(row)]
        return noise_level, self._phi_steps(noise_level)[..., None] * w

    def step(self, theta: Tensor, normal: Tensor, gradient: Tensor, damping: float) -> Tensor:
        """Where a damped step leads; noise levels that would leave the SDE's range are fixed at its bound."""
        nothing_known = torch.full_like(theta, torch.nan)
        there = theta + _solution(normal, gradient, damping, nothing_known)
        inside = self._clamped(there)
        if not torch.equal(there, inside):
            known = torch.where(there == inside, nothing_known, inside - theta)
            there = self._clamped(theta + _solution(normal, gradient, damping, known))
        return there

    def _clamped(self, theta: Tensor) -> Tensor:
        """Parameters with the noise levels in the SDE's range."""
        smallest = self.model.sde.span().noise_level[1].item()
        levels = slice(len(theta) - self.num_steps, None)
        theta = theta.clone()
        theta[levels] = theta[levels].clamp(math.log(smallest), math.log(self.largest))
        return theta

    def allows(self, theta: Tensor) -> bool:
        """Whether the noise levels fall strictly."""
        return bool(theta.isfinite().all() and (self._unpack(theta)[0].diff() < 0).all())

    def error(self, theta: Tensor, coupling: Coupling) -> tuple[float, float]:
        """The trimmed RMS of the table's error, and the median of the samples' own."""
        x = coupling.run(self.fitted_of(theta).table(self.model.sde), self.model)
        return trimmed_error(x, coupling.x_0), sample_errors(x, coupling.x_0).median().item()

    def end(self, theta: Tensor, x_T: Tensor, cond: Condition) -> Tensor:
        """Final states, differentiable in the parameters `(B, P)`, of which each sample has its own copy."""
        sde = self.model.sde
        dtype = x_T.dtype
        noise_level, weights = self._unpack(theta)
        level = _differentiable_level(sde, noise_level)
        p, q = (part.to(dtype) for part in self.integrand.factors(level))
        scale = self.integrand.scale(level).to(dtype)
        level = level.to(x_T.device, dtype)
        weights = weights.to(dtype)
        y = x_T * match_rank(level.sigma[:, 0] / sde.prior_std() / scale[:, 0], x_T)
        h = x_T.new_zeros(len(x_T), 0, x_T[0].numel())
        for k in range(self.num_steps):
            x = y * match_rank(scale[:, k], y)
            denoised = self._denoised(x, level[:, k], cond)
            new = denoised * match_rank(p[:, k], x) + x * match_rank(q[:, k], x)
            h = torch.cat([h, new.flatten(1)[:, None]], 1)
            y = y + torch.einsum("bk,bkn->bn", weights[:, k, : k + 1], h).view_as(y)
        return y

    def _denoised(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """D; its graph is made again in the backward pass if those of all evaluations would be large."""
        if graphs_kept(self.model, self.num_steps) == self.num_steps:
            return self.model.denoise_at(x, level, cond)
        found: Tensor = checkpoint(self.model.denoise_at, x, level, cond, use_reentrant=False)
        return found

    def equations(
        self, theta: Tensor, coupling: Coupling, chosen: Tensor, limit: float, noise: Noise, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Estimates of J^T W J and J^T W e of chosen pairs, times PROJECTIONS, with W the robust weights.

        Args:
            theta: the parameters.
            coupling, chosen: the pairs.
            limit: the error of a sample above which it counts linearly.
            noise: of the random signs, for the chosen pairs.
            batch_size: pairs at a time, on which the sums do not depend.
        """
        normal = torch.zeros(len(theta), len(theta), dtype=torch.float64)
        gradient = torch.zeros_like(theta)
        for index in batches(len(chosen), batch_size):
            part = coupling.take(chosen[index])
            own = theta.to(part.x_T.device).repeat(len(part.x_T), 1).requires_grad_()
            with torch.enable_grad():
                end = self.end(own, part.x_T, part.cond)
            error = (end - part.x_0).detach()
            size = sample_errors(end.detach(), part.x_0)
            weight = (1 / size.clamp(min=limit)).nan_to_num(posinf=0)[:, None]
            own_noise = Noise(noise.seed, noise.indices[index].to(end.device))
            for left in reversed(range(PROJECTIONS)):
                signs = own_noise.normal(left, self.model.shape, end.dtype).sign()
                (rows,) = torch.autograd.grad(end, own, signs, retain_graph=left > 0)
                projected = (error * signs).double().flatten(1).sum(1)
                normal += ((rows * weight).T @ rows).cpu()
                gradient += ((rows * weight).T @ projected).cpu()
        return normal, gradient


def _differentiable_level(sde: SDE, noise_level: Tensor) -> Level:
    """The level of an SDE at noise levels, differentiable in them even if `sde.time` is not.

    dt / d(log-SNR) = -sigma^2 / g^2.
    """
    log_snr = -2 * noise_level.log()
    with torch.no_grad():
        t = sde.time(log_snr).clamp(sde.t_min, sde.t_max)
        rate = -((sde.sigma(t) / sde.diffusion(t)) ** 2)
    return sde.level(t + rate * (log_snr - log_snr.detach()))

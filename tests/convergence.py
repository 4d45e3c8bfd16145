"""The order of convergence of a sampler, measured where the truth is known.

A Gaussian target gives everything in closed form. Deterministic samplers are compared with the exact flow of its
samples (strong order), between noise levels where every SDE is smooth; multistep methods may start with values on that
flow. For stochastic samplers the whole chain is affine in the start and the noises, so that its mean and variance are
exact numbers, without Monte Carlo (weak order).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from samplers import RungeKutta4, Table, TableSampler
from samplers.multistep import Multistep, multistep_table
from samplers.quadrature import Time
from samplers.table import Loop
from scoresde import SDE, DiscreteVPSDE, ExactScoreModel, Gaussian, Noise, ScoreModel
from scoresde.noise import NoiseSource
from scoresde.sde import Level
from tests.analytic import gaussian


def noise_for(num_samples: int, device: torch.device | str = "cpu") -> Noise:
    """Noise for samples 0, 1, ..."""
    return Noise(0, torch.arange(num_samples, device=device))


def inner_grid(sde: SDE, num_steps: int, spacing: str, first: float = 4.0, last: float = 0.05) -> Tensor:
    """Times between two noise levels at which every SDE is smooth, evenly in t, sqrt(t) or log-SNR; no clean end."""
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    log_snr = -2 * torch.tensor([first, last], dtype=torch.float64).log()
    start, end = sde.time(log_snr)
    if spacing == "log_snr":
        return sde.time(log_snr[0] + u * (log_snr[1] - log_snr[0]))
    if spacing == "sqrt":
        return (start.sqrt() + u * (end.sqrt() - start.sqrt())) ** 2
    return start + u * (end - start)


def smooth(sde: SDE) -> SDE:
    """The SDE, or for a DDPM chain one of so many levels that steps do not see the kinks of its beta."""
    if isinstance(sde, DiscreteVPSDE):
        return DiscreteVPSDE(beta_start=1e-6, beta_end=2e-4, num_levels=100_000)
    return sde


def kinked(sampler: TableSampler, model: ScoreModel) -> bool:
    """Whether a method takes polynomials in t along a chain, whose path is smooth only between its levels."""
    return (
        isinstance(model.sde, DiscreteVPSDE)
        and isinstance(sampler, Multistep)
        and isinstance(sampler.scheme(model).variable, Time)
    )


# --- errors and their slopes ----------------------------------------------------------------------------------------


def slopes(errors: Sequence[float]) -> list[float]:
    """The power of the step size with which errors fall, for each halving of it."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def asymptotic_slopes(errors: Sequence[float]) -> list[float]:
    """Slopes over the last two halvings whose errors are well above rounding."""
    above = [error for error in errors if error > 1e-13]
    assert len(above) >= 3, errors
    return slopes(above[-3:])


def counts(sampler: TableSampler) -> tuple[int, ...]:
    """Numbers of steps: high orders need fine grids to show, but with four stages a step rounding is near."""
    if isinstance(sampler, RungeKutta4):
        return (16, 32, 64, 128)
    if sampler.order <= 2:
        first = 64
    else:
        first = 256 if sampler.order == 3 and isinstance(sampler, Multistep) else 128
    return tuple(first * 2**k for k in range(4))


# --- deterministic samplers: strong order ---------------------------------------------------------------------------


class Flow:
    """The exact probability flow of some samples of a Gaussian, from a level on."""

    def __init__(self, target: Gaussian, start: Level, num_samples: int = 64) -> None:
        device = start.t.device
        x_0 = target.sample(num_samples, torch.Generator(device).manual_seed(0))
        self.target = target
        self.start = start
        self.x_T = start.alpha * x_0 + start.sigma * noise_for(num_samples, device).normal(0, (3,), torch.float64)

    def at(self, level: Level) -> Tensor:
        """The samples at a level."""
        return self.target.probability_flow(self.x_T, (self.start.alpha, self.start.sigma), (level.alpha, level.sigma))


def errors_on_a_gaussian(
    sampler: TableSampler, sde: SDE, spacing: str, exact_history: bool, device: torch.device | str = "cpu"
) -> list[float]:
    """RMS errors of a deterministic sampler at the end of grids of more and more steps, against the exact flow.

    With `exact_history` a multistep method starts with as many values on the exact flow as it uses, instead of with
    steps of lower order.
    """
    sde, target = smooth(sde), gaussian(device)
    model = ExactScoreModel(target, sde)
    errors = []
    for num_steps in counts(sampler):
        grid = inner_grid(sde, num_steps, spacing, first=2.0, last=0.4)
        levels = sde.level(grid.to(device))
        flow = Flow(target, levels[0])
        table, x = sampler.table(model, grid), flow.x_T
        history: list[Tensor] = []
        if exact_history and isinstance(sampler, Multistep):
            table, x, history = with_exact_history(sampler, model, grid, flow)
        result = Loop(table, model, x)(x, noise_for(64, device), history=history)
        errors.append((result - flow.at(levels[-1])).square().mean().sqrt().item())
    return errors


def with_exact_history(
    sampler: Multistep, model: ScoreModel, grid: Tensor, flow: Flow
) -> tuple[Table, Tensor, list[Tensor]]:
    """The rows that know all values that the method uses, the state before them, and the values, newest first."""
    scheme = sampler.scheme(model)
    known = scheme.num_values - 1
    table, host = sampler.table(model, grid), model.sde.level(grid)
    # nothing before the first row is to be corrected
    uncorrected = multistep_table(scheme._replace(corrector=False), host[:-1], host[1:])
    table.b[known, : known + 1] = uncorrected.b[known]
    table.b[known, known + 1 :] = 0
    levels = host.to(model.device, torch.float64)
    p, q = scheme.integrand.factors(levels[:known])
    history: list[Tensor] = []
    for k in range(known):
        x_k = flow.at(levels[k])
        history.insert(0, p[k] * model.denoise_at(x_k, levels[k]) + q[k] * x_k)
    return table.rows(slice(known, None)), flow.at(levels[known]), history


# --- stochastic samplers: weak order --------------------------------------------------------------------------------


class ProbeNoise(NoiseSource):
    """Noise whose draw in interval k is 1 for sample k of the batch and 0 for all others."""

    def __init__(self, size: int, device: torch.device | str) -> None:
        self.size = size
        self.device = device

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        unit = torch.zeros(len(draws), self.size, *shape, dtype=dtype, device=self.device)
        unit[range(len(draws)), draws] = 1
        return unit


def chain_moments(
    sampler: TableSampler, sde: SDE, grid: Tensor, mean: float, variance: float, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Exact mean and variance of a sampler's result on N(mean, variance), started from the exact marginal.

    The chain is affine in (x_T, z_1, ..., z_n): sample 0 of the batch starts at the mean with no noise, sample k sees
    z_k = 1 alone, and the last starts one unit off the mean. All differences to sample 0 are the chain's coefficients.
    """
    target = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64))
    model = ExactScoreModel(target.to(device), sde)
    table = sampler.table(model, grid)
    start = sde.level(grid[0])
    x_T = torch.full((len(table) + 2, 1), (start.alpha * mean).item(), dtype=torch.float64, device=device)
    x_T[-1] += 1
    y = Loop(table, model, x_T)(x_T, ProbeNoise(len(x_T), device))[:, 0].cpu()
    coefficients = y[1:] - y[0]
    start_variance = (start.alpha**2 * variance + start.sigma**2).item()
    return y[0].item(), (coefficients[:-1].square().sum() + coefficients[-1] ** 2 * start_variance).item()


def variance_errors(
    sampler: TableSampler, sde: SDE, spacing: str, mean: float, variance: float, device: torch.device | str = "cpu"
) -> tuple[list[float], list[float]]:
    """Errors of the mean and of the variance at the end of grids of more and more steps."""
    mean_errors, errors = [], []
    for num_steps in (200, 400, 800):
        grid = inner_grid(sde, num_steps, spacing, first=3.0, last=0.2)
        end = sde.level(grid[-1])
        got_mean, got_variance = chain_moments(sampler, sde, grid, mean, variance, device)
        mean_errors.append(abs(got_mean - (end.alpha * mean).item()))
        errors.append(abs(got_variance - (end.alpha**2 * variance + end.sigma**2).item()))
    return mean_errors, errors

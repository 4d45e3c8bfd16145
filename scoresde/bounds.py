r"""Variational bounds of log p(x_0), by sampling alone: no solver, no trace.

The reverse process is a chain of Gaussians between a prior and a decoder, and for each x_0

    -log p(x_0) <= KL(q(x_T | x_0) | p(x_T))  +  E -log p(x_0 | x_{t_min})  +  diffusion

(Kingma et al. 2021, section 3.5). In the limit of infinitely many steps, with lambda = log_snr and the denoiser D, the
diffusion term is

    1/2 E int |eps - eps_hat|^2 d lambda,    |eps - eps_hat| = alpha/sigma |D(x_t, t) - x_0|,

from lambda(t_max) to lambda(t_min) (section 5). Only these two ends of the schedule matter. As an integral over t it is
1/2 int gamma'(t) E|eps - eps_hat|^2 dt with gamma = -lambda. By the moment identities gamma' = g^2 / sigma^2 for every
linear SDE. `VariationalObjective` trains on this bound, and `elbo` evaluates it.

A chain of finitely many steps, such as DDPM's (Ho et al. 2020, equation 5), has one KL divergence between two Gaussians
for each step: `ddpm_bound`. Its decoder gives each level of integer data the mass of a bin, so that it bounds a
probability.

q(x_T | x_0) is N(alpha_T x_0, sigma_T^2 I). Its divergence from the prior that samplers draw from, N(0, sigma_T^2 I),
is |alpha_T x_0|^2 / (2 sigma_T^2). A prior that knows the scale of the data is closer. The decoder of continuous data
is N(x_t / alpha, (sigma / alpha)^2 I) at t_min. The mean of its -log p(x_0 | x_{t_min}) is its entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.reverse import (
    MeasuredVariance,
    check_variance,
    decoder_log_prob,
    decoder_range,
    step_cost,
    variance_range,
)
from scoresde.score_model import ScoreModel, check_data, warn_of_repeats, with_learned_variance
from scoresde.sde import SDE, Level
from scoresde.targets import Target

Variance = str | MeasuredVariance
SMALLEST = 1e-12  # share of the noise that a measured error of 0 counts as


class Bound(NamedTuple):
    """A lower bound of log p(x_0) and its parts, in nats, each `(B,)`, float64.

    Attributes:
        bound: -(prior + reconstruction + diffusion), for the density in the model's units.
        standard_error: standard error of the bound over the random draws.
        prior, reconstruction, diffusion: the three costs.
    """

    bound: Tensor
    standard_error: Tensor
    prior: Tensor
    reconstruction: Tensor
    diffusion: Tensor


class DDPMBound(NamedTuple):
    """A lower bound of the log probability of x_0 and its parts, in nats, float64.

    Attributes:
        bound: -(prior + sum of steps + decoder), `(B,)`.
        prior: L_T, `(B,)`.
        steps: L_{t-1}, noisiest first, `(B, num_terms)`; each times the number of steps it stands for.
        decoder: L_0, `(B,)`.
    """

    bound: Tensor
    prior: Tensor
    steps: Tensor
    decoder: Tensor


def prior_cost(x_0: Tensor, last: Level, sigma_data: float = 0.0) -> Tensor:
    """KL(N(alpha x_0, sigma^2 I) | N(0, (alpha^2 sigma_data^2 + sigma^2) I)) at the last level, `()`.

    `(B, *)` to `(B,)`, nats. With sigma_data = 0 it is alpha^2 |x_0|^2 / (2 sigma^2).
    """
    return _prior_cost(x_0.flatten(1).square().sum(1), x_0[0].numel(), last, sigma_data)


def _prior_cost(squares: Tensor, dim: int, last: Level, sigma_data: float) -> Tensor:
    """`prior_cost` of samples with squared norms `(B,)`."""
    snr = torch.exp(last.log_snr)
    growth = snr * sigma_data**2  # of the variance, by the data
    return 0.5 * ((snr * squares - dim * growth) / (1 + growth) + dim * torch.log1p(growth))


def reconstruction_cost(dim: int, first: Level) -> Tensor:
    """E -log N(x_0; x_t / alpha, (sigma/alpha)^2 I) at the first level: dim/2 log(2 pi e (sigma/alpha)^2), nats."""
    return 0.5 * dim * (math.log(2 * math.pi * math.e) - first.log_snr)


@torch.no_grad()
def elbo(
    model: ScoreModel,
    x_0: Tensor,
    cond: Condition = None,
    *,
    num_evaluations: int = 64,
    prior: Target | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Bound:
    """The continuous-time variational bound of log p(x_0) over [t_min, t_max], estimated without bias.

    The range of log-SNR is divided into `num_evaluations` equal cells. Each sample is evaluated at one random log-SNR
    in each cell, with fresh noise. The standard error estimates the variance of a cell from second differences of three
    neighbours: their noise is independent, and their means lie nearly on a line.

    Args:
        model: the model; each sample costs `num_evaluations` evaluations of it.
        x_0: clean data in the model's units, `(B, *shape)`.
        cond: what the model is conditioned on, or None.
        num_evaluations: number of cells.
        prior: a distribution whose noisy marginal at t_max serves as p(x_T); None for N(0, sigma_data^2 I). For a
            distribution the divergence E log q(x_T | x_0) - log p(x_T) is estimated, too.
        generator: source of levels and noise; the global one if None.
        batch_size: samples at a time, on which the bound does not depend; by default as many as need little memory.
        on_evaluation: called after each evaluation of a batch.
    """
    check_data(model, x_0, cond)
    warn_of_repeats(x_0)
    require(num_evaluations >= 3, f"num_evaluations={num_evaluations}: need at least 3")
    size = choose_batch_size(batch_size, model.shape, model.device)
    noises = _noises(x_0, size, generator)
    first = _level(model, model.sde.t_min, x_0)
    last = _level(model, model.sde.t_max, x_0)
    width = (first.log_snr - last.log_snr) / num_evaluations
    squares = torch.cat([x_0[part].double().flatten(1).square().sum(1) for part, _ in noises])
    dim = x_0[0].numel()
    scale = squares.mean() / dim
    cells = []
    with model.eval_mode():
        for k in range(num_evaluations):
            found = []
            for part, noise in noises:
                u = noise.stream("levels").uniform(k, (), torch.float64)
                t = model.sde.time(last.log_snr + (k + u) * width).clamp(model.sde.t_min, model.sde.t_max)
                found.append(_errors(model, x_0[part], model.sde.level(t), condition.take(cond, part), noise, k, scale))
                on_evaluation()
            cells.append(torch.cat(found, 1))
    reconstruction = reconstruction_cost(dim, first).expand(len(x_0))
    diffusion = 0.5 * width * _controlled(torch.stack(cells))
    variance = diffusion.diff(n=2, dim=0).square().mean(0) / 6 * num_evaluations
    if prior is None:
        of_prior = _prior_cost(squares, dim, last, model.sigma_data)
    else:
        draws = torch.cat([_prior_draws(prior, x_0[part], last, num_evaluations, of) for part, of in noises], 1)
        of_prior = draws.mean(0)
        variance += draws.var(0) / num_evaluations
    total = of_prior + reconstruction + diffusion.sum(0)
    return Bound(-total, variance.sqrt(), of_prior, reconstruction, diffusion.sum(0))


def _controlled(cells: Tensor) -> Tensor:
    """Squared errors `(n, B)` less their control variates, from both `(n, 2, B)`.

    The variate is the zero-mean error of a linear denoiser, scaled by the coefficient that was optimal in the previous
    cell. It leaves the mean unchanged, and at small noise removes nearly all variance due to eps.
    """
    error, linear = cells.unbind(1)
    best = ((error * linear).sum(1) / linear.square().sum(1).clamp(min=1e-300)).clamp(0, 1)
    factor = torch.cat([torch.zeros_like(best[:1]), best[:-1]])
    return error - factor[:, None] * linear


def _noises(x_0: Tensor, batch_size: int, generator: torch.Generator | None) -> list[tuple[slice, Noise]]:
    """Batches of the samples, each with its noise, which is a function of a drawn seed and of a sample's place."""
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**62, (), device=device, generator=generator))
    indices = torch.arange(len(x_0), device=x_0.device)
    return [(part, Noise(seed, indices[part])) for part in batches(len(x_0), batch_size)]


def _errors(
    model: ScoreModel, x_0: Tensor, level: Level, cond: Condition, noise: Noise, draw: int, variance: Tensor
) -> Tensor:
    """|eps - eps_hat|^2 of the model, and `_linear_error`, at a level `(B,)` and one draw of eps: `(2, B)`, float64."""
    eps = noise.normal(draw, model.shape, x_0.dtype)
    of_model = _denoising_error(model, x_0, level, cond, eps) * torch.exp(level.log_snr)
    return torch.stack([of_model, _linear_error(x_0, eps, level, variance)])


def _linear_error(x_0: Tensor, eps: Tensor, level: Level, variance: Tensor) -> Tensor:
    """|eps - eps_hat|^2 of a linear denoiser minus its mean over eps, `(B,)`, float64.

    With v = alpha^2 s^2 + sigma^2, a = alpha^2 s^2 / v and b = alpha sigma / v, the linear denoiser that is best for
    x_0 ~ N(0, s^2 I), s^2 = `variance`, has the error a eps - b x_0. The mean of its square is a^2 dim + b^2 |x_0|^2.
    """
    clean = x_0.double().flatten(1)
    noise = eps.double().flatten(1)
    signal = level.alpha**2 * variance
    total = signal + level.sigma**2
    a = signal / total
    b = level.alpha * level.sigma / total
    squares = (a[:, None] * noise - b[:, None] * clean).square().sum(1)
    return squares - a**2 * clean.shape[1] - b**2 * clean.square().sum(1)


def _denoising_error(model: ScoreModel, x_0: Tensor, level: Level, cond: Condition, eps: Tensor) -> Tensor:
    """|D - x_0|^2 `(B,)` in float64, at a level `(B,)`."""
    x_t, narrow = _noised(x_0, level, eps)
    return (model.denoise_at(x_t, narrow, cond) - x_0).double().flatten(1).square().sum(1)


def _noised(x_0: Tensor, level: Level, eps: Tensor) -> tuple[Tensor, Level]:
    """x_t = alpha x_0 + sigma eps, and the level, in the type of x_0."""
    narrow = level.to(x_0.device, x_0.dtype)
    wide = narrow.match_rank(x_0)
    return wide.alpha * x_0 + wide.sigma * eps, narrow


def _prior_draws(prior: Target, x_0: Tensor, last: Level, num_draws: int, noise: Noise) -> Tensor:
    """log q(x_T | x_0) - log p(x_T) at draws of x_T, `(num_draws, B)`, float64."""
    require(prior.shape == tuple(x_0.shape[1:]), f"prior of shape {prior.shape}: the data has {tuple(x_0.shape[1:])}")
    prior = prior.to(x_0.device, torch.float64)
    clean = x_0.double()
    draws = []
    log_scale = torch.log(last.sigma) + 0.5 * math.log(2 * math.pi)
    for k in range(num_draws):
        eps = noise.stream("prior").normal(k, prior.shape, torch.float64)
        log_q = -0.5 * eps.flatten(1).square().sum(1) - x_0[0].numel() * log_scale
        draws.append(log_q - prior.log_prob(last.alpha * clean + last.sigma * eps, last.alpha, last.sigma))
    return torch.stack(draws)


@torch.no_grad()
def ddpm_bound(
    model: ScoreModel,
    x_0: Tensor,
    grid: Tensor,
    cond: Condition = None,
    *,
    bin_width: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
    variance: Literal["posterior", "beta", "learned"] | MeasuredVariance = "posterior",
    num_terms: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> DDPMBound:
    """The variational bound of DDPM's chain along a grid, for integer data (Ho et al. 2020, equation 5).

    L_{t-1} is KL(q(x_s | x_t, x_0) | p(x_s | x_t)) at one draw of x_t. q is the bridge, and p, a step of the sampler,
    is the bridge with D in place of x_0. "posterior" gives p the bridge's variance, so that L_{t-1} is
    (SNR(s) - SNR(t)) |x_0 - D|^2 / 2; "beta" gives it DDPM's larger one; "learned" or a measured variance gives it one
    between them (`scoresde.reverse`). L_0 is the discretised decoder of equation 13, with mean D(x_t) and standard
    deviation sigma/alpha at the last time above 0; with a learned or measured variance it can be smaller. (Ho et al.
    use sigma_1, which is smaller than sigma/alpha by a factor sqrt(1 - beta_1) close to 1.)

    Args:
        model: the model.
        x_0: clean data in the model's units, `(B, *shape)`, on the levels low, low + bin_width, .., high.
        grid: times that fall from at most t_max to 0 (see `samplers.grids`). The DDPM chain itself is the uniform grid
            through all its levels.
        cond: what the model is conditioned on, or None.
        bin_width: distance between levels of the data in the model's units: 2/255 for 8 bits on [-1, 1].
        low, high: the smallest and the largest level; their bins extend to infinity.
        variance: of the sampler: "posterior", "beta", "learned" for a model that gives it, or a measured one (see
            `samplers.Ancestral`).
        num_terms: number of steps to evaluate. The grid is divided into this many parts, and each sample draws one step
            from each; None for all steps.
        generator: source of the noise and the steps; the global one if None.
        batch_size: samples at a time, on which the bound does not depend; by default as many as need little memory.
        on_evaluation: called after each evaluation of a batch.
    """
    check_data(model, x_0, cond)
    size = choose_batch_size(batch_size, model.shape, model.device)
    for part in batches(len(x_0), size):
        _check_levels(x_0[part], bin_width, low, high)
    check_variance(variance)
    levels = _noisy_levels(model.sde, grid.to(x_0.device, torch.float64))
    num_terms = _check_terms(num_terms, len(levels) - 1)  # the last step is the decoder's
    parts = []
    with model.eval_mode():
        for part, noise in _noises(x_0, size, generator):
            clean = x_0[part]
            given = condition.take(cond, part)
            steps = _chain_costs(model, clean, levels, given, noise, num_terms, variance, on_evaluation)
            t = levels[torch.full((len(clean),), len(levels) - 1)]
            x_t, narrow = _noised(clean, t, noise.normal(num_terms, model.shape, clean.dtype))
            x0_hat, std = _decode(model, x_t, narrow, given, variance, levels)
            on_evaluation()
            decoder = -decoder_log_prob(clean, x0_hat, std, bin_width, low, high).flatten(1).sum(1)
            parts.append((prior_cost(clean.double(), levels[0]), steps, decoder))
    prior, steps, decoder = (torch.cat(found) for found in zip(*parts, strict=True))
    return DDPMBound(-(prior + steps.sum(1) + decoder), prior, steps, decoder)


def _check_terms(num_terms: int | None, num_steps: int) -> int:
    """The number of steps that are evaluated, of those between noisy times."""
    num_terms = num_steps if num_terms is None else num_terms
    require(
        0 <= num_terms <= num_steps and (num_terms > 0 or num_steps == 0),
        f"num_terms={num_terms}: need 1 to {num_steps}, the steps of the grid between noisy times",
    )
    return num_terms


def _chain_costs(
    model: ScoreModel,
    x_0: Tensor,
    levels: Level,
    cond: Condition,
    noise: Noise,
    num_terms: int,
    variance: Variance,
    on_evaluation: Callable[[], None],
) -> Tensor:
    """The costs of steps between noisy levels, `(B, num_terms)`: one of each part of the chain, times its size."""
    num_steps = len(levels) - 1
    costs = [x_0.new_zeros(len(x_0), 0, dtype=torch.float64)]
    for k in range(num_terms):
        start = k * num_steps // num_terms
        end = (k + 1) * num_steps // num_terms
        step = (start + (end - start) * noise.stream("steps").uniform(k, (), torch.float64)).long()
        t = levels[step]
        s = levels[step + 1]
        x_t, narrow = _noised(x_0, t, noise.normal(k, model.shape, x_0.dtype))
        x0_hat, growth = _denoise_and_grow(model, x_t, narrow, cond, variance, s, t)
        cost = step_cost((x0_hat - x_0).double(), growth, s.match_rank(x_0), t.match_rank(x_0))
        costs.append((end - start) * cost.flatten(1).sum(1)[:, None])
        on_evaluation()
    return torch.cat(costs, 1)


def _noisy_levels(sde: SDE, times: Tensor) -> Level:
    """The levels of a grid without its last time, 0; raises `UsageError` unless it falls from at most t_max to 0."""
    falls = times.ndim == 1 and len(times) >= 2 and bool((times.diff() < 0).all()) and times[-1].item() == 0
    slack = 1e-9 * sde.t_max
    require(
        falls and times[0].item() <= sde.t_max + slack and times[-2].item() >= sde.t_min - slack,
        f"grid={times.tolist()}: need times that fall from at most t_max={sde.t_max:g} to at least "
        f"t_min={sde.t_min:g}, and then 0",
    )
    return sde.level(times[:-1].clamp(sde.t_min, sde.t_max))


def _denoise_and_grow(
    model: ScoreModel, x_t: Tensor, level: Level, cond: Condition, variance: Variance, s: Level, t: Level
) -> tuple[Tensor, Tensor]:
    """D, and log(Sigma / betatilde) of the steps from t to s, float64, which broadcasts against it.

    The level is t in the type of x_t.
    """
    if variance == "learned":
        x0_hat, v = with_learned_variance(model, x_t, level, cond)
        return x0_hat, v * match_rank(variance_range(s, t), x_t)
    x0_hat = model.denoise_at(x_t, level, cond)
    if isinstance(variance, MeasuredVariance):
        return x0_hat, variance.of_entries(variance.growth(s, t), x0_hat)
    return x0_hat, match_rank(variance_range(s, t) * (variance == "beta"), x_t)


def _decode(
    model: ScoreModel, x_t: Tensor, level: Level, cond: Condition, variance: Variance, levels: Level
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float64, of the decoder at the last of the levels of a grid."""
    last = levels[-1]
    if variance == "learned":
        span = decoder_range(last, levels[-2]) if len(levels) > 1 else torch.zeros_like(last.t)
        x0_hat, v = with_learned_variance(model, x_t, level, cond)
        return x0_hat, last.noise_level * torch.exp(0.5 * (v.double() - 1) * span)
    x0_hat = model.denoise_at(x_t, level, cond)
    if isinstance(variance, MeasuredVariance):
        share = variance.of_entries(variance.at(last).clamp(min=SMALLEST), x0_hat)
        return x0_hat, (last.noise_level * share.sqrt()).expand(x0_hat.shape)
    return x0_hat, last.noise_level.expand(len(x_t))


def _check_levels(x_0: Tensor, bin_width: float | Tensor, low: float | Tensor, high: float | Tensor) -> None:
    """Raises `UsageError` unless x_0 lies on the levels, up to rounding."""
    index = (x_0.double() - low) / bin_width
    last = (high - low) / torch.as_tensor(bin_width)
    inside = (index > -0.01) & (index < last.to(index) + 0.01) & ((index - index.round()).abs() < 0.01)
    require(
        bool((torch.as_tensor(bin_width) > 0).all()) and bool(inside.all()),
        f"x_0: holds values that are not low={low}, low + bin_width={bin_width}, .., high={high}; give whole numbers "
        "in the model's units, without noise",
    )


def _level(model: ScoreModel, t: float, like: Tensor) -> Level:
    """The level of a time, `()`, float64."""
    return model.sde.level(torch.tensor(t, dtype=torch.float64, device=like.device))

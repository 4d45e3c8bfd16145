r"""Variational bounds of log p(x_0), by sampling alone: no solver, no trace.

The reverse process is a chain of Gaussians, a decoder after it and a prior before it, and for each x_0

    -log p(x_0) <= KL(q(x_T | x_0) | p(x_T))  +  E -log p(x_0 | x_{t_min})  +  diffusion,

(Kingma et al. 2021, section 3.5). With infinitely many steps, lambda = log_snr and D the denoiser, the last is

    1/2 E int |eps - eps_hat|^2 d lambda,    |eps - eps_hat| = alpha/sigma |D(x_t, t) - x_0|,

from lambda(t_max) to lambda(t_min) (section 5): only these two ends of the schedule matter. Read in t it is
1/2 int gamma'(t) E|eps - eps_hat|^2 dt with gamma = -lambda, and gamma' = g^2 / sigma^2 for every linear SDE, by the
moment identities; that is what `VariationalObjective` trains. `elbo` evaluates it.

A chain of finitely many steps, as DDPM's own (Ho et al. 2020, equation 5), has one KL divergence of two Gaussians for
each step: `ddpm_bound`. For data of whole numbers its decoder gives each level the mass of a bin, so that the bound is
one of a probability.

The prior is N(0, sigma_T^2 I), the one that samplers draw from, with q(x_T | x_0) = N(alpha_T x_0, sigma_T^2 I): their
divergence is |alpha_T x_0|^2 / (2 sigma_T^2). The decoder of continuous data is N(x_t / alpha, (sigma / alpha)^2 I) at
t_min, whose mean log density is that of its entropy.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.errors import require
from scoresde.score_model import ScoreModel, check_data
from scoresde.sde import Level, bridge, transition
from scoresde.targets import Target


class Bound(NamedTuple):
    """A lower bound of log p(x_0) and its parts, in nats, each `(B,)`, float64.

    Attributes:
        bound: of the log density in the model's units; -(prior + reconstruction + diffusion).
        standard_error: of the bound, by the noise that was drawn.
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
        steps: L_{t-1}, from the noisiest down, `(B, num_terms)`; of a chosen part, times the steps each stands for.
        decoder: L_0, `(B,)`.
    """

    bound: Tensor
    prior: Tensor
    steps: Tensor
    decoder: Tensor


def prior_cost(x_0: Tensor, last: Level) -> Tensor:
    """KL(N(alpha x_0, sigma^2 I) | N(0, sigma^2 I)) at the last level, `()`: `(B, *)` to `(B,)`, nats."""
    return 0.5 * torch.exp(last.log_snr) * x_0.flatten(1).square().sum(1)


def reconstruction_cost(dim: int, first: Level) -> Tensor:
    """E -log N(x_0; x_t / alpha, (sigma/alpha)^2 I) at the first level: dim/2 log(2 pi e (sigma/alpha)^2), nats."""
    return 0.5 * dim * (math.log(2 * math.pi * math.e) - first.log_snr)


@torch.no_grad()
def elbo(
    model: ScoreModel,
    x_0: Tensor,
    cond: Tensor | None = None,
    *,
    num_evaluations: int = 64,
    prior: Target | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """The continuous-time variational bound of log p(x_0) over [t_min, t_max], estimated without bias.

    Each sample has one log-SNR in each of `num_evaluations` equal cells, with noise of its own. From each squared error
    that of a linear denoiser less its known mean is taken, times the factor that would have been best one cell before.
    That changes no mean, and at small noise removes nearly all that eps adds.

    The standard error takes the variance of a cell from the second difference of three neighbours: they have noise of
    their own, and means that lie nearly on a line.

    Args:
        model: the model; each sample costs `num_evaluations` evaluations of it.
        x_0: clean data in the model's units, `(B, *shape)`.
        cond: what the model is conditioned on, or None.
        num_evaluations: cells.
        prior: a distribution whose noisy marginal at t_max stands for p(x_T); None for N(0, sigma_T^2 I). The
            divergence is then estimated, too: E log q(x_T | x_0) - log p(x_T).
        generator: source of levels and noise, on the device of x_0; the global one if None.
    """
    check_data(model, x_0, cond)
    require(num_evaluations >= 3, f"num_evaluations={num_evaluations}: need at least 3")
    first, last = _level(model, model.sde.t_min, x_0), _level(model, model.sde.t_max, x_0)
    width = (first.log_snr - last.log_snr) / num_evaluations
    dim, cells, factor = x_0[0].numel(), [], x_0.new_zeros((), dtype=torch.float64)
    with model.eval_mode():
        for k in range(num_evaluations):
            u = torch.rand(len(x_0), device=x_0.device, dtype=torch.float64, generator=generator)
            t = model.sde.time(last.log_snr + (k + u) * width).clamp(model.sde.t_min, model.sde.t_max)
            level = model.sde.level(t)
            eps, squares = _squared_error(model, x_0, level, cond, generator)
            error, linear = squares * torch.exp(level.log_snr), _linear_error(x_0, eps, level)
            cells.append(0.5 * width * (error - factor * linear))
            factor = ((error * linear).sum() / linear.square().sum().clamp(min=1e-300)).clamp(0, 1)
    reconstruction = reconstruction_cost(dim, first).expand(len(x_0))
    diffusion, variance = torch.stack(cells), torch.zeros_like(cells[0])
    variance += diffusion.diff(n=2, dim=0).square().mean(0) / 6 * num_evaluations
    if prior is None:
        of_prior = prior_cost(x_0.double(), last)
    else:
        draws = _prior_draws(prior, x_0, last, num_evaluations, generator)
        of_prior = draws.mean(0)
        variance += draws.var(0) / num_evaluations
    total = of_prior + reconstruction + diffusion.sum(0)
    return Bound(-total, variance.sqrt(), of_prior, reconstruction, diffusion.sum(0))


def _linear_error(x_0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """|eps - eps_hat|^2 of a linear denoiser less its mean over eps, `(B,)`, float64.

    The best one for x_0 ~ N(0, s^2 I) has the error a eps - b x_0, a = alpha^2 s^2 / v, b = alpha sigma / v with
    v = alpha^2 s^2 + sigma^2, whose square has the mean a^2 dim + b^2 |x_0|^2.
    """
    clean, eps = x_0.double().flatten(1), eps.double().flatten(1)
    signal = level.alpha**2 * clean.square().mean()
    a, b = (scale / (signal + level.sigma**2) for scale in (signal, level.alpha * level.sigma))
    squares = (a[:, None] * eps - b[:, None] * clean).square().sum(1)
    return squares - a**2 * clean.shape[1] - b**2 * clean.square().sum(1)


def _squared_error(
    model: ScoreModel, x_0: Tensor, level: Level, cond: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """eps `(B, *)`, and |D - x_0|^2 `(B,)` in float64, at a level `(B,)`."""
    eps, x0_hat = _noise_and_denoise(model, x_0, level, cond, generator)
    return eps, (x0_hat - x_0).double().flatten(1).square().sum(1)


def _noise_and_denoise(
    model: ScoreModel, x_0: Tensor, level: Level, cond: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """eps, and D at x_t = alpha x_0 + sigma eps, in the type of x_0."""
    eps = torch.randn(x_0.shape, device=x_0.device, dtype=x_0.dtype, generator=generator)
    narrow = level.like(x_0)
    wide = narrow.match_rank(x_0)
    return eps, model.denoise_at(wide.alpha * x_0 + wide.sigma * eps, narrow, cond)


def _prior_draws(prior: Target, x_0: Tensor, last: Level, num_draws: int, generator: torch.Generator | None) -> Tensor:
    """log q(x_T | x_0) - log p(x_T) at draws of x_T, `(num_draws, B)`, float64."""
    require(prior.shape == tuple(x_0.shape[1:]), f"prior of shape {prior.shape}: the data has {tuple(x_0.shape[1:])}")
    prior, clean, draws = prior.to(x_0.device, torch.float64), x_0.double(), []
    log_scale = torch.log(last.sigma) + 0.5 * math.log(2 * math.pi)
    for _ in range(num_draws):
        eps = torch.randn(x_0.shape, device=x_0.device, dtype=torch.float64, generator=generator)
        log_q = -0.5 * eps.flatten(1).square().sum(1) - x_0[0].numel() * log_scale
        draws.append(log_q - prior.log_prob(last.alpha * clean + last.sigma * eps, last.alpha, last.sigma))
    return torch.stack(draws)


@torch.no_grad()
def ddpm_bound(
    model: ScoreModel,
    x_0: Tensor,
    grid: Tensor,
    cond: Tensor | None = None,
    *,
    bin_width: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
    variance: Literal["posterior", "beta"] = "posterior",
    num_terms: int | None = None,
    generator: torch.Generator | None = None,
) -> DDPMBound:
    """The variational bound of DDPM's chain along a grid, for data of whole numbers (Ho et al. 2020, equation 5).

    L_{t-1} is the divergence of the bridge q(x_s | x_t, x_0) from the sampler's p(x_s | x_t), the bridge with D for
    x_0, at one draw of x_t. "posterior" gives p the bridge's own variance, and then it is
    (SNR(s) - SNR(t)) |x_0 - D|^2 / 2; "beta" DDPM's larger one. L_0 is the discretised decoder of equation 13, with
    mean D(x_t) and deviation sigma/alpha at the last time above 0 (their sigma_1 but for a factor alpha_1 next to 1).

    Args:
        model: the model.
        x_0: clean data in the model's units, `(B, *shape)`, on the levels low, low + bin_width, .., high.
        grid: times that fall from at most t_max to 0 (see `samplers.grids`); uniform ones on a DDPM chain with all
            its levels are the chain.
        cond: what the model is conditioned on, or None.
        bin_width: distance of two levels of the data in the model's units: 2/255 of 8 bits on [-1, 1].
        low, high: the least and the largest level; their bins are open to infinity.
        variance: of the sampler: "posterior" or "beta".
        num_terms: how many of the steps are evaluated, one chosen for each sample from each of as many parts of the
            grid; None for all of them.
        generator: source of the noise and the choice, on the device of x_0; the global one if None.
    """
    check_data(model, x_0, cond)
    _check_levels(x_0, bin_width, low, high)
    require(variance in ("posterior", "beta"), f"variance={variance!r}: need 'posterior' or 'beta'")
    times = grid.to(x_0.device, torch.float64)
    falls = times.ndim == 1 and len(times) >= 2 and bool((times.diff() < 0).all()) and times[-1].item() == 0
    slack = 1e-9 * model.sde.t_max
    require(
        falls and times[0].item() <= model.sde.t_max + slack and times[-2].item() >= model.sde.t_min - slack,
        f"grid={grid.tolist()}: need times that fall from at most t_max={model.sde.t_max:g} to at least "
        f"t_min={model.sde.t_min:g}, and then 0",
    )
    levels = model.sde.level(times[:-1].clamp(model.sde.t_min, model.sde.t_max))
    num_steps = len(times) - 2  # between two noisy times; the last step is the decoder's
    num_terms = num_steps if num_terms is None else num_terms
    require(
        0 <= num_terms <= num_steps and (num_terms > 0 or num_steps == 0),
        f"num_terms={num_terms}: need 1 to {num_steps}, the steps of the grid between noisy times",
    )
    terms = []
    with model.eval_mode():
        for k in range(num_terms):
            start, end = k * num_steps // num_terms, (k + 1) * num_steps // num_terms
            step = torch.randint(start, end, (len(x_0),), device=x_0.device, generator=generator)
            t, s = Level(*(p[step] for p in levels)), Level(*(p[step + 1] for p in levels))
            error = _squared_error(model, x_0, t, cond, generator)[1]
            terms.append((end - start) * _step_cost(error, x_0[0].numel(), t, s, variance))
        t = Level(*(part[-1:].expand(len(x_0)) for part in levels))
        x0_hat = _noise_and_denoise(model, x_0, t, cond, generator)[1]
    steps = torch.stack(terms, 1) if terms else x_0.new_zeros(len(x_0), 0, dtype=torch.float64)
    decoder = -decoder_log_prob(x_0, x0_hat, t.noise_level, bin_width, low, high).flatten(1).sum(1)
    prior = prior_cost(x_0.double(), levels.at(0))
    return DDPMBound(-(prior + steps.sum(1) + decoder), prior, steps, decoder)


def _step_cost(x_0_error: Tensor, dim: int, t: Level, s: Level, variance: str) -> Tensor:
    """KL(q(x_s | x_t, x_0) | p(x_s | x_t)) `(B,)` where D misses x_0 by |x_0 - D|^2 `(B,)`."""
    on_x0, _, std = bridge(s, t)
    if variance == "posterior":
        return 0.5 * (on_x0 / std) ** 2 * x_0_error
    wider = transition(s, t)[1]
    log_ratio = 2 * torch.log(std / wider)
    return 0.5 * dim * (torch.expm1(log_ratio) - log_ratio) + 0.5 * (on_x0 / wider) ** 2 * x_0_error


def decoder_log_prob(
    x_0: Tensor,
    mean: Tensor,
    std: Tensor,
    bin_width: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
) -> Tensor:
    """Log mass of N(mean, std^2) on the bin of each entry of x_0, `(B, *)`, nats (Ho et al. 2020, equation 13).

    Args:
        x_0: data on the levels low, low + bin_width, .., high.
        mean: `(B, *)`.
        std: `(B,)`.
        bin_width, low, high: as in `ddpm_bound`.
    """
    x, std = x_0.double(), match_rank(std.double(), x_0)
    lower = torch.where(x < low + 0.5 * bin_width, -math.inf, (x - 0.5 * bin_width - mean) / std)
    upper = torch.where(x > high - 0.5 * bin_width, math.inf, (x + 0.5 * bin_width - mean) / std)
    # in the lower tail, by symmetry, where the logarithm of the distribution function keeps its digits
    lower, upper = torch.where(lower > 0, -upper, lower), torch.where(lower > 0, -lower, upper)
    larger, smaller = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return larger + torch.log(-torch.expm1(smaller - larger))


def _check_levels(x_0: Tensor, bin_width: float | Tensor, low: float | Tensor, high: float | Tensor) -> None:
    """Raises `UsageError` unless x_0 lies on the levels, up to rounding."""
    index, last = (x_0.double() - low) / bin_width, (high - low) / torch.as_tensor(bin_width)
    inside = (index > -0.01) & (index < last.to(index) + 0.01) & ((index - index.round()).abs() < 0.01)
    require(
        bool((torch.as_tensor(bin_width) > 0).all()) and bool(inside.all()),
        f"x_0: holds values that are not low={low}, low + bin_width={bin_width}, .., high={high}; give whole numbers "
        "in the model's units, without noise",
    )


def _level(model: ScoreModel, t: float, like: Tensor) -> Level:
    """The level of a time, `()`, float64."""
    return model.sde.level(torch.tensor(t, dtype=torch.float64, device=like.device))

r"""Weighted particles: samples of what guidance promises, products, powers and rewards.

Each problem (a condition, an observation) has its own particles, which are never mixed with those of others.

    1. Start. The particles of a problem are drawn at t_max, with equal weights.
    2. Step. All go to the next level by DDPM's step with the guided estimate.
    3. Weights. Each is multiplied by what the guided model says of its step (`scoresde.guidance.weighed`).
    4. Resampling. If the effective sample size (sum W)^2 / sum W^2 falls below a share of the particles, they are drawn
       anew by their weights. Systematic resampling keeps the number of copies of a particle within one of its share.

In the end the particles are resampled once more, and all weigh the same. As their number and that of the steps grow,
they are samples of the target (Del Moral 2004). `effective` says how far the weights can be trusted: if it falls to a
few particles, take more of them, more steps, or less guidance.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers import grids
from samplers.table import Callback
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.guidance.weighed import Weighed, WeighedModel, squared_norm
from scoresde.noise import Noise
from scoresde.reverse import MeasuredVariance
from scoresde.sde import Level, bridge


class ParticleSamples(NamedTuple):
    """Particles of several problems.

    Attributes:
        x: `(num_problems, num_particles, *shape)`, of equal weight.
        effective: `(rows, num_problems)` effective sample sizes before resampling, as shares of `num_particles`.
        nfe: network evaluations of a particle.
    """

    x: Tensor
    effective: Tensor
    nfe: int


@torch.no_grad()
def sample_particles(
    model: WeighedModel,
    num_problems: int,
    num_particles: int,
    *,
    num_steps: int | None = None,
    grid: Tensor | None = None,
    cond: Any = None,
    seed: int = 0,
    threshold: float = 0.5,
    batch_size: int | None = None,
    callback: Callback | None = None,
    variance: MeasuredVariance | None = None,
) -> ParticleSamples:
    """Draws weighted particles along a grid, and resamples them.

    Args:
        model: a guided model whose weights are known: `ClassifierFreeGuidance`, `Autoguidance`, `ProductModel`,
            `GradientGuidance`, `ClassifierGuidance`; or a posterior model with weights, `PiGDM` or `MMPS`.
        num_problems: how many sets of particles.
        num_particles: in each set.
        num_steps: of a grid that is uniform in log-SNR; 200 by default.
        grid: times of your own instead (see `samplers.grids`); the last may be 0.
        cond: conditions with one entry a problem, one number for all, or None.
        seed: which noise; the particles of a problem do not depend on how many follow it.
        threshold: of the effective sample size, as a share of the particles; 1 resamples after every step.
        batch_size: particles that are evaluated at a time.
        variance: of the steps of the model without guidance, as `pilot_variance(model, intervals=1)` measures it; by
            default that of the bridge, which is too small in long steps and so shifts the weights of modes.
        callback: called after each level, with all particles, as `callback(row, level, x_t, x0_hat)`.

    Raises:
        UsageError: for a model without weights, such as guidance in an interval or with another rule than the linear.
    """
    if not isinstance(model, WeighedModel):
        raise UsageError(f"model of {type(model).__name__}: gives no weights; need guidance, such as a ProductModel")
    for name, value in {"num_problems": num_problems, "num_particles": num_particles}.items():
        require(value >= 1, f"{name}={value}: need at least 1")
    require(0 <= threshold <= 1, f"threshold={threshold}: need 0 <= threshold <= 1")
    require(num_steps is None or grid is None, "num_steps, grid: give one of the two")
    if grid is None:
        grid = grids.uniform_log_snr(model.sde, 200 if num_steps is None else num_steps)
    grid = grids.check_grid(model.sde, grid)
    cond = condition.from_values(cond, num_problems)
    model.check_cond(cond)
    problem = torch.arange(num_problems, device=model.device).repeat_interleave(num_particles)
    given = condition.take(condition.to(cond, model.device), problem)
    level = model.sde.level(grid[grid > 0])
    shape = (num_problems, num_particles)
    noise = Noise(seed, torch.arange(len(problem), device=model.device))
    require(
        variance is None or not variance.edges,
        "variance: differs from entry to entry; measure one number a level, pilot_variance(model, intervals=1)",
    )
    size = choose_batch_size(batch_size, model.shape, model.device)
    particles = _Particles(model, given, noise, shape, size, callback, variance)
    with model.eval_mode():
        x = particles.run(level, threshold, to_clean=bool(grid[-1] == 0))
    nfe = model.num_calls(level)
    return ParticleSamples(x.unflatten(0, shape), torch.stack(particles.effective), nfe)


class _Particles:
    """The particles of all problems, problem after problem in one batch.

    Attributes:
        effective: the effective sample sizes so far, each `(num_problems,)`.
    """

    def __init__(
        self,
        model: WeighedModel,
        cond: Condition,
        noise: Noise,
        shape: tuple[int, int],
        batch_size: int,
        callback: Callback | None,
        variance: MeasuredVariance | None,
    ) -> None:
        self.model = model
        self.cond = cond
        self.noise = noise
        self.shape = shape
        self.batch_size = batch_size
        self.effective = list[Tensor]()
        self.callback = callback
        self.variance = variance

    def run(self, level: Level, threshold: float, to_clean: bool) -> Tensor:
        """From the prior at the first of some levels `(n,)` to the last, or to clean data."""
        model = self.model
        on_device = level.to(model.device, model.dtype)
        snr = level.noise_level.double() ** -2
        std = (level.sigma[0] / model.total_weight**0.5).item()
        x = std * self.noise.normal(0, model.shape, model.dtype)
        now = self._weigh(x, on_device[0])
        log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if now.value is not None:
            log_w = log_w + now.value
        for k in range(len(level) - 1):
            if self.callback is not None:
                self.callback(k, on_device[k], x, now.x0_hat)
            x, now, log_w = self._resampled(k, x, now, log_w, threshold)
            on_x0, on_xt, width = (part.item() for part in bridge(level[k + 1], level[k]))
            if self.variance is not None:
                width *= math.exp(0.5 * self.variance.growth(level[k + 1], level[k]).item())
            mean = on_x0 * now.x0_hat + on_xt * x
            after = mean + width * self.noise.normal(k + 1, model.shape, model.dtype)
            then = self._weigh(after, on_device[k + 1])
            if now.rate is not None and then.rate is not None:
                ends = now.rate * snr[k].item() + then.rate * snr[k + 1].item()
                log_w = log_w + 0.5 * ends * (snr[k + 1] / snr[k]).log().item()
            elif now.own is not None and now.value is not None and then.value is not None:
                own = on_x0 * now.own + on_xt * x
                log_w = log_w + then.value - now.value
                log_w = log_w + (squared_norm(after - mean) - squared_norm(after - own)) / (2 * width**2)
            x = after
            now = then
        x, now, _ = self._resampled(len(level) - 1, x, now, log_w, 1.0)
        return now.x0_hat if to_clean else x

    def _weigh(self, x: Tensor, level: Level) -> Weighed:
        """The model's estimates and accounts, a batch at a time."""
        parts = []
        for part in batches(len(x), self.batch_size):
            parts.append(self.model.weigh(x[part], level, condition.take(self.cond, part)))
        return Weighed.join(parts)

    def _resampled(
        self, row: int, x: Tensor, now: Weighed, log_w: Tensor, threshold: float
    ) -> tuple[Tensor, Weighed, Tensor]:
        """Particles drawn anew in the problems whose effective sample size is at most a share of their number."""
        problems, count = self.shape
        weights = log_w.reshape(self.shape).softmax(1)
        effective = 1 / (count * weights.square().sum(1))
        self.effective.append(effective)
        # one uniform number a problem, of the noise of its first particle
        first = Noise(self.noise.seed, self.noise.indices[::count])
        u = first.stream("resampling").uniform(row, (), torch.float64)
        places = (torch.arange(count, device=x.device) + u[:, None]) / count
        chosen = torch.searchsorted(weights.cumsum(1).contiguous(), places).clamp(max=count - 1)
        stay = torch.arange(count, device=x.device).expand(problems, -1)
        anew = (effective <= threshold)[:, None]
        index = (torch.where(anew, chosen, stay) + count * torch.arange(problems, device=x.device)[:, None]).flatten()
        log_w = torch.where(anew, 0.0, log_w.reshape(self.shape)).flatten()
        return x[index], now.take(index), log_w

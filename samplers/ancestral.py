r"""DDIM and ancestral sampling: one step of the bridge between x_t and an estimate of x_0.

Given x_0, the forward process between s < t is a Gaussian bridge. With r = (sigma_s alpha_t) / (alpha_s sigma_t), the
ratio of noise levels,

    q(x_s | x_t, x_0) = N(alpha_s x_0 + sigma_s r eps, sigma_s^2 (1 - r^2)),    eps = (x_t - alpha_t x_0) / sigma_t.

Putting the denoiser for x_0 gives ancestral sampling. The same marginals have every N(alpha_s x_0 + k eps, c^2) with
k^2 + c^2 = sigma_s^2; DDIM (Song, Meng and Ermon 2021, equation 16) takes c = eta sigma_s sqrt(1 - r^2). So

    eta = 0   is deterministic, Euler's method on the probability flow in sigma/alpha;
    eta = 1   is ancestral sampling; along the levels of a DDPM chain it is DDPM's own update, term by term
              (a test shows it): (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(1 - beta_t) + sqrt(betatilde_t) z.

DDIM's eta scales the standard deviation of the bridge, the eta of `samplers.euler_maruyama` the diffusion of an SDE:
they agree as steps shrink. DDPM's larger variance, beta_t, adds the forward step's noise
sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2 around the same mean. Between the two lie the variance that a pilot run
measures, and the one that a network has learned (`scoresde.reverse`). If it differs from entry to entry, it depends on
the state, and its sampler is not a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import NoiseKind, Prepared, Samples, StepSampler
from samplers.table import Callback, Projection, Table, denoiser_table
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import NoiseSource
from scoresde.reverse import MeasuredVariance, check_variance, variance_range
from scoresde.score_model import ScoreModel, with_learned_variance
from scoresde.sde import Level, bridge


@final
@dataclass(frozen=True)
class DDIM(StepSampler):
    """x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps_hat + c z, c = eta sigma_s sqrt(1 - r^2).

    Order 1 (strong at eta 0, weak otherwise); one evaluation a step; independent noise unless eta = 0.

    Attributes:
        eta: 0 is deterministic, 1 is ancestral sampling.
    """

    eta: float = 0.0

    order = 1
    min_steps = 1
    one_step = True
    default_num_steps = 100

    def __post_init__(self) -> None:
        require(0 <= self.eta <= 1, f"eta={self.eta}: need 0 <= eta <= 1; DDPM's larger noise is Ancestral('beta')")

    @property
    def noise(self) -> NoiseKind:
        return "independent" if self.eta else "none"

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_phi(model.sde, num_steps, model.sigma_data)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        c = self.eta * bridge(end, start)[2]
        a = torch.sqrt(end.sigma**2 - c**2) / start.sigma
        return denoiser_table(start, end, a, end.alpha - a * start.alpha, c)


@final
@dataclass(frozen=True)
class Ancestral(StepSampler):
    """Samples x_s from the bridge, as DDPM does.

    Weak order 1; one evaluation a step; independent noise. With "posterior" it is DDIM at eta = 1. With "beta" it needs
    at least four steps: see `ReverseDiffusion`. With a variance that differs from entry to entry it is not a table: its
    table has the noise of "posterior".

    Attributes:
        variance: "posterior", that of the bridge, DDPM's larger "beta", or between them "learned", the network's own,
            or a measured one (see `pilot_variance`); on the command line also "pilot".
    """

    variance: Literal["posterior", "beta", "learned"] | MeasuredVariance = "posterior"

    order = 1
    noise = "independent"
    one_step = True
    default_num_steps = 500

    def __post_init__(self) -> None:
        check_variance(self.variance)

    @property
    def min_steps(self) -> int:
        return 4 if self.variance == "beta" else 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        on_x0, on_xt, std = bridge(end, start)
        if isinstance(self.variance, MeasuredVariance) and not self.by_entry:
            growth = self.variance.growth(end, start)
        else:
            growth = variance_range(end, start) * (self.variance == "beta")
        return denoiser_table(start, end, on_xt, on_x0, std * torch.exp(0.5 * growth))

    @property
    def by_entry(self) -> bool:
        """Whether the variance differs from entry to entry of a sample."""
        return bool(self.variance.edges) if isinstance(self.variance, MeasuredVariance) else self.variance == "learned"

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        if self.by_entry:
            return _PreparedByEntry(self.table(model, grid), model, grid, self.variance)
        return super().prepare(model, grid)


@final
class _PreparedByEntry(Prepared):
    """A table of ancestral steps whose noise is widened, entry by entry, to a learned or measured variance."""

    def __init__(self, table: Table, model: ScoreModel, grid: Tensor, variance: str | MeasuredVariance) -> None:
        self.table = table
        self.model = model
        self.grid = grid
        self._variance = variance
        noisy = table.c > 0  # nothing is drawn in the step to clean data
        s = table.arrival[noisy]
        t = table.level[noisy]
        self._growth = variance.growth(s, t) if isinstance(variance, MeasuredVariance) else variance_range(s, t)

    def _denoise(self, y: Tensor, level: Level, cond: Condition, growth: Tensor) -> tuple[Tensor, Tensor]:
        """D, and sqrt(Sigma / betatilde) of its entries, from what is known of it beforehand."""
        if isinstance(self._variance, MeasuredVariance):
            x0_hat = self.model.denoise_at(y, level, cond)
            return x0_hat, torch.exp(0.5 * self._variance.of_entries(growth, x0_hat))
        x0_hat, v = with_learned_variance(self.model, y, level, cond)
        return x0_hat, torch.exp(0.5 * growth * v)

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        table = self.table
        level = table.level.to(x_T.device, x_T.dtype)
        arrival = table.arrival.to(x_T.device, x_T.dtype)
        growths = self._growth.to(x_T.device, x_T.dtype)
        y = x_T
        for k, (a, b, c) in enumerate(zip(table.a.tolist(), table.b[:, 0].tolist(), table.c.tolist(), strict=True)):
            if c > 0:
                x0_hat, wider = self._denoise(y, level[k], cond, growths[k])
                added = c * wider * noise.normal(k + 1, tuple(y.shape[1:]), y.dtype)
            else:
                x0_hat = self.model.denoise_at(y, level[k], cond)
                added = torch.zeros_like(y)
            if callback is not None:
                callback(k, level[k], y, x0_hat)
            y = a * y + b * x0_hat + added
            if project is not None:
                y = project(k, arrival[k], y)
        return Samples(y, self.model.num_calls(table.level))

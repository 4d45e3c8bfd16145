r"""Split Gibbs sampling, also known as decoupled annealing posterior sampling (DAPS).

At each noise level, from high to low,

    1. Estimate: D(x_t).
    2. Draw x_0 from p(y | x_0) N(x_0; D, v I).
    3. Noise it to the next level, as the forward process does.

(Zhang et al. 2024, algorithm 1.) Errors of a level are forgotten at the next, as only x_0 is carried along. Their v is
r^2, and their estimate the end of a short probability flow. Here v = s^2 r^2 / (s^2 + r^2) with the deviation s of the
data, which with D is exact for N(0, s^2 I), and far better on other data (docs/inverse.md). Draws are exact for a
linear operator. Otherwise they are by Langevin steps, which do not evaluate the model. No backward pass through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers.base import Prepared
from samplers.measured.base import OwnLoop, PreparedLoop, Step, need_measured
from scoresde.errors import require
from scoresde.inverse.base import PosteriorModel
from scoresde.inverse.pigdm import isotropic_variance
from scoresde.inverse.solve import pulled
from scoresde.noise import Noise
from scoresde.operators import LinearOperator
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

LANGEVIN_STEPS = 100
STEP = 0.2  # of a Langevin step, over the largest curvature
POWER_ITERATIONS = 5  # that find the largest curvature
SAFETY = 2.0  # factor on it, for what so few iterations miss, and for curvature that changes


@final
@dataclass(frozen=True)
class SplitGibbs(OwnLoop):
    """The sampler of Zhang et al. 2024, for any operator.

    Order 0; one evaluation a step. The model is a `MeasuredModel`, and the condition the measurement.
    """

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        return _PreparedSplitGibbs(need_measured(self, model), grid)


@final
class _PreparedSplitGibbs(PreparedLoop):
    def __init__(self, model: PosteriorModel, grid: Tensor) -> None:
        super().__init__(model, grid)
        variance = model.measurement_noise.variance(torch.zeros(()))
        require(
            isinstance(model.operator, LinearOperator) or isinstance(variance, Tensor) or variance > 0,
            "noise=0: SplitGibbs needs some for an operator that is not linear",
        )

    def begin(self, x_T: Tensor, level: Level, y: Tensor, noise: Noise) -> tuple[Tensor, Step]:
        draws = noise.stream("x_0")

        def step(k: int, x: Tensor, x0_hat: Tensor, start: Level, end: Level) -> Tensor:
            v = isotropic_variance(start, self.model.sigma_data)
            x_0 = drawn(self.model, x0_hat, v, y, draws.stream(f"{k}"))
            return end.alpha * x_0 + end.sigma * noise.normal(k + 1, tuple(x.shape[1:]), x.dtype)

        return x_T, step


def drawn(model: PosteriorModel, mean: Tensor, v: Tensor, y: Tensor, noise: Noise) -> Tensor:
    """A draw of x_0 from p(y | x_0) N(x_0; mean, v I)."""
    operator = model.operator
    shape = tuple(mean.shape[1:])
    variance = model.measurement_noise.variance(y)
    if isinstance(operator, LinearOperator):
        # perturb, then correct: (x + v A'(v A A' + S)^-1 (y + n - A x)) for x from the prior and n from the noise
        x = mean + v.sqrt() * noise.normal(0, shape, mean.dtype)
        n = noise.normal(1, tuple(y.shape[1:]), y.dtype) * torch.as_tensor(variance, dtype=y.dtype).to(y).sqrt()
        return x + v * pulled(operator, y + n - operator(x), v, variance)[0]
    width = torch.as_tensor(variance, dtype=y.dtype).to(y)
    x = mean + v.sqrt() * noise.normal(0, shape, mean.dtype)
    direction = noise.normal(1, shape, x.dtype)
    for k in range(LANGEVIN_STEPS):
        # the curvature of y - A(x) may grow without bound, so a step is sized by that where it begins
        for _ in range(POWER_ITERATIONS if k == 0 else 1):
            direction, largest = _power_iteration(model, x, width, direction)
        step = STEP / (SAFETY * largest + 1 / v)
        pull = operator.vjp(x, (y - operator(x)) / width) - (x - mean) / v
        x = x + step * pull + (2 * step).sqrt() * noise.normal(2 + k, shape, x.dtype)
    return x


def _power_iteration(model: PosteriorModel, x: Tensor, variance: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """A direction nearer to the leading one of J'J / S at each sample, and its eigenvalue; J is A's derivative."""
    dims = tuple(range(1, x.ndim))
    size = torch.linalg.vector_norm(direction, dim=dims, keepdim=True)
    unit = torch.where(size > 0, direction / torch.where(size > 0, size, 1), 1 / x[0].numel() ** 0.5)
    after = model.operator.vjp(x, model.operator.jvp(x, unit) / variance)
    return after, torch.linalg.vector_norm(after, dim=dims, keepdim=True)

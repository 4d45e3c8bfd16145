r"""Moment matching: p(x_0 | x_t) taken as a Gaussian with its true mean and covariance.

Both are known from the model: E[x_0 | x_t] = D, Cov[x_0 | x_t] = sigma^2 / alpha J, J = dD / dx_t (Tweedie's formulas).
So p(y | x_t) = N(y; A D, A C A' + S) with C = sigma^2 / alpha J, and

    D_y = D + C A' (A C A' + S)^-1 (y - A D)

(Rozet et al. 2024; Boys et al. 2024 take the diagonal of C). J is symmetric, so a product with C is one backward pass.
A network's J is neither symmetric nor positive: conjugate gradients, which need both, blow up on it, some samples in a
thousand. So the system is solved by least residuals, one pass an iteration, for all samples at once. If p(x_0) is
Gaussian, the posterior is exact once it is solved: after as many iterations as there are measured values at most.

For an operator that is not linear, A stands for its derivative at D.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.guidance.weighed import Weighed, WeighedModel
from scoresde.inverse.base import Differentiated, PosteriorModel, shift
from scoresde.inverse.solve import least_residual
from scoresde.operators import MeasurementNoise, Operator
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


@final
class MMPS(PosteriorModel, WeighedModel):
    """The posterior model of Rozet et al. 2024, for any differentiable operator.

    An evaluation of the model costs `iterations` backward passes: C A' w is known from those that find w.

    Args:
        model, operator, noise: as of every `PosteriorModel`.
        iterations: of least residuals; None solves the system exactly, by one backward pass for each measured
            value. Weights of particles need that.

    Raises:
        UsageError: for noise of deviation 0.
    """

    def __init__(
        self,
        model: ScoreModel,
        operator: Operator,
        noise: MeasurementNoise | float,
        iterations: int | None = 3,
    ) -> None:
        super().__init__(model, operator, noise)
        require(iterations is None or iterations >= 1, f"iterations={iterations}: need 1 or more, or None for all")
        variance = self.measurement_noise.variance(torch.zeros(()))
        require(
            isinstance(variance, Tensor) or variance > 0,
            "noise=0: MMPS needs some, as its system is singular without; give the rounding of the measurement",
        )
        self.iterations = iterations

    def posterior_mean(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Tensor:
        if self.iterations is None:
            return self._exact(x_t, level, y, cond).x0_hat
        estimate = Differentiated(self.model, x_t, level, cond)
        variance = self.measurement_noise.variance(y)
        scale = shift(level, x_t)

        def apply(v: Tensor) -> tuple[Tensor, Tensor]:
            """(A C A' + S) v, and C A' v."""
            moved = scale * estimate.vjp(self.operator.vjp(estimate.x0_hat, v))
            return self.operator.jvp(estimate.x0_hat, moved) + variance * v, moved

        e = y - self.operator(estimate.x0_hat)
        return estimate.x0_hat + least_residual(apply, e, self.iterations)

    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The weights of the target p(x_t) p~(y | x_t), which at the end is the posterior; by the whole matrix."""
        y, own = self.split(cond)
        return self._exact(x_t, level, y.to(x_t), own)

    def _exact(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Weighed:
        """By the whole matrix A C A', a backward pass for each measured value."""
        estimate = Differentiated(self.model, x_t, level, cond)
        scale = shift(level, x_t)
        count = math.prod(self.operator.measured_shape)
        rows = []
        for unit in torch.eye(count, dtype=x_t.dtype, device=x_t.device):
            v = unit.reshape(1, *self.operator.measured_shape).expand(len(x_t), *self.operator.measured_shape)
            rows.append(scale * estimate.vjp(self.operator.vjp(estimate.x0_hat, v)))
        back = torch.stack(rows, 1)  # C A', (B, m, *shape)
        measured = torch.stack([self.operator.jvp(estimate.x0_hat, row) for row in rows], 1).flatten(2)
        measured = 0.5 * (measured + measured.mT)
        noise = torch.as_tensor(self.measurement_noise.variance(y), dtype=x_t.dtype, device=x_t.device)
        noise = noise.expand(y.shape).flatten(1)
        values, axes = torch.linalg.eigh(measured.double())
        covariance = axes @ (values.clamp(min=0)[..., None] * axes.mT) + torch.diag_embed(noise.double())
        factor = torch.linalg.cholesky(covariance)
        e = (y - self.operator(estimate.x0_hat)).flatten(1).double()
        w = torch.cholesky_solve(e[..., None], factor)[..., 0]
        value = -0.5 * (e * w).sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        moved = torch.einsum("bm,bm...->b...", w.to(x_t), back)
        return Weighed(estimate.x0_hat + moved, own=estimate.x0_hat, value=value.detach())

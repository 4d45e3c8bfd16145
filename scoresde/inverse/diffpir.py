r"""Plug and play: the estimate that fits the measurement and lies near D.

    D_y = argmin_x |y - A x|^2 / S + lambda |x - D|^2 / v,

v as of `scoresde.inverse.pigdm`, which is r^2 at small noise (Zhu et al. 2023, DiffPIR, equation 12 with rho_t =
lambda S / r^2). It is PiGDM without the derivative of D, so it needs no backward pass. With DDIM(eta) it is their
algorithm 1. Without noise it projects D on the measurement, as DDNM does (Wang et al. 2023). On no data it is exact.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.inverse.base import PosteriorModel, need_linear
from scoresde.inverse.pigdm import isotropic_variance
from scoresde.inverse.solve import pulled
from scoresde.operators import MeasurementNoise, Operator
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


@final
class DiffPIR(PosteriorModel):
    """The posterior model of Zhu et al. 2023, for linear operators. No backward pass.

    Args:
        model, operator, noise: as of every `PosteriorModel`.
        strength: lambda; larger trusts the model more and the measurement less.
    """

    def __init__(
        self, model: ScoreModel, operator: Operator, noise: MeasurementNoise | float, strength: float = 1.0
    ) -> None:
        super().__init__(model, operator, noise)
        need_linear("DiffPIR", operator)
        require(strength > 0, f"strength={strength}: must be positive")
        self.strength = strength

    def posterior_mean(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Tensor:
        operator = need_linear("DiffPIR", self.operator)
        x0_hat = self.model.denoise_at(x_t, level, cond)
        variance = isotropic_variance(level, self.sigma_data) / self.strength
        pull, _ = pulled(operator, y - operator(x0_hat), variance, self.measurement_noise.variance(y))
        return x0_hat + match_rank(variance.to(x_t), x_t) * pull

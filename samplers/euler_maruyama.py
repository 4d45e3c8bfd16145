r"""Euler-Maruyama: the plain step of the eta-family of reverse processes in t (Song et al. 2021, section 4.1).

All of these have the marginals p_t of the forward SDE (Anderson 1982; Song et al. 2021, equations 6 and 13):

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw,      time running backwards.

eta = 1 is the reverse SDE, eta = 0 the probability-flow ODE. A step from t to s < t takes the coefficients of t:

    x_s = x_t - (t - s) [f x_t - (1 + eta^2)/2 g^2 score] + eta g sqrt(t - s) z.

With score = (alpha D - x) / sigma^2 the drift is linear in x and in the denoiser, p x + q D. The method knows nothing
of the SDE's solution, so stiff ends (VE and EDM at large noise, a rectified flow near t = 1) need steps that shrink
with the noise: equal steps in log-SNR are safe under every SDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import NoiseKind, StepSampler
from samplers.table import Table, denoiser_table
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level


def drift_coefficients(sde: SDE, t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(p, q) of the reverse drift p x + q D(x, t), element by element in t."""
    level = sde.level(t)
    pull = 0.5 * (1 + eta**2) * (sde.diffusion(t) / level.sigma) ** 2
    return sde.drift_coef(t) + pull, -pull * level.alpha


@final
@dataclass(frozen=True)
class EulerMaruyama(StepSampler):
    """Euler-Maruyama on the eta-family.

    Order 1 (weak, and strong at eta 0); one evaluation a step; independent noise unless eta = 0.

    Attributes:
        eta: 1 is the reverse SDE, 0 is Euler's method on the probability flow.
    """

    eta: float = 1.0

    order = 1
    min_steps = 1
    one_step = True
    default_num_steps = 500

    def __post_init__(self) -> None:
        require(0 <= self.eta < math.inf, f"eta={self.eta}: need 0 <= eta, finite")

    @property
    def noise(self) -> NoiseKind:
        return "independent" if self.eta else "none"

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        step = start.t - end.t
        on_x, on_x0 = drift_coefficients(model.sde, start.t, self.eta)
        c = self.eta * model.sde.diffusion(start.t) * torch.sqrt(step)
        return denoiser_table(start, end, 1 - step * on_x, -step * on_x0, c)

r"""Euler-Maruyama: the plain step of the eta-family in t (Song et al. 2021, section 4.1).

    x_s = x_t - (t - s) [f x_t - (1 + eta^2)/2 g^2 score] + eta g sqrt(t - s) z

at the coefficients of t. It knows nothing of the SDE's solution, so that stiff ends (VE and EDM at large noise, a
rectified flow near t = 1) need steps that shrink with the noise: equal steps in log-SNR are safe under every SDE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch

from samplers import grids
from samplers.base import StepSampler
from samplers.table import Table, denoiser_table
from scoresde.errors import require
from scoresde.reverse import drift_coefficients
from scoresde.sde import SDE, Level


@final
@dataclass(frozen=True)
class EulerMaruyama(StepSampler):
    """Euler-Maruyama on the reverse SDE; eta = 0 is Euler's method on the probability flow.

    Order 1 (weak, and strong at eta 0); one evaluation a step; independent noise unless eta = 0.
    """

    eta: float = 1.0

    order = 1
    default_grid = staticmethod(grids.uniform_log_snr)
    default_num_steps = 500

    def __post_init__(self) -> None:
        require(0 <= self.eta < math.inf, f"eta={self.eta}: need 0 <= eta, finite")

    @property
    def noise(self) -> str:  # type: ignore[override]
        return "independent" if self.eta else "none"

    def steps(self, sde: SDE, start: Level, end: Level) -> Table:
        step = start.t - end.t
        on_x, on_x0 = drift_coefficients(sde, start.t, self.eta)
        c = self.eta * sde.diffusion(start.t) * torch.sqrt(step)
        return denoiser_table(start, 1 - step * on_x, -step * on_x0, c)

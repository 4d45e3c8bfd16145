r"""The probability-flow ODE with error control.

In phi = atan(sigma / alpha) and y = x / sqrt(alpha^2 + sigma^2) the flow of every Gaussian path is

    dy/dphi = cos(phi) eps_hat - sin(phi) D,

the velocity v of Salimans and Ho 2022 (their appendix D), with no singular end: at phi -> 0 it tends to eps_hat, at
phi -> pi/2 to -D. So an adaptive solver needs no small steps for the variable's sake at either end, and stops at
phi(t_min), from where the denoiser leads to clean data. The steps are torchdiffeq's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import Sampler
from samplers.table import Callback
from scoresde.errors import require
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level


def ends(sde: SDE, num_steps: int | None = None) -> Tensor:
    """t_max, t_min and 0: all that this sampler needs of a grid.

    Raises:
        UsageError: for a number of steps, which this sampler chooses itself.
    """
    require(
        num_steps is None,
        f"num_steps={num_steps}: ProbabilityFlow chooses its steps by rtol and atol; Heun() takes a number",
    )
    return torch.tensor([sde.t_max, sde.t_min, 0.0], dtype=torch.float64)


def _worst_sample(error: Tensor) -> Tensor:
    """RMS over a sample's entries, the largest of the batch: the tolerance holds for each sample."""
    return error.flatten(1).square().mean(1).max().sqrt()


@final
@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Dormand and Prince's order-5 method between the ends of the grid, with `rtol` and `atol` on each sample.

    Only the grid's first and last times matter: the steps between are chosen so that the estimated error of every
    sample stays within atol + rtol |y|. The step sizes serve a whole batch, so a sample depends on its batch, within
    the tolerance. On CUDA every step waits for the device, to know whether its error was small enough.
    """

    rtol: float = 1e-4
    atol: float = 1e-4

    order = 5
    noise = "none"
    default_grid = staticmethod(ends)
    default_num_steps = None

    def __post_init__(self) -> None:
        require(self.rtol > 0 and self.atol > 0, f"rtol={self.rtol}, atol={self.atol}: both must be positive")

    def num_evaluations(self, sde: SDE, grid: Tensor) -> None:
        return None

    def run(
        self,
        model: ScoreModel,
        x_T: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        from torchdiffeq import odeint

        sde, grid = model.sde, grids.check_grid(model.sde, grid)
        to_clean = bool(grid[-1] == 0)
        level_ends = sde.level(grid[:-1][[0, -1]] if to_clean else grid[[0, -1]])
        phi = torch.atan(level_ends.noise_level)
        evaluations = 0

        def level_at(phi: Tensor) -> Level:
            log_snr = -2 * torch.log(torch.tan(phi.double()))
            return sde.level(sde.time(log_snr).clamp(sde.t_min, sde.t_max)).like(x_T)

        def velocity(phi: Tensor, y: Tensor) -> Tensor:
            nonlocal evaluations
            level = level_at(phi)
            x_t = y * torch.sqrt(level.alpha**2 + level.sigma**2)
            x0_hat = model.denoise_at(x_t, level, cond)
            if callback is not None:
                callback(evaluations, level, x_t, x0_hat)
            evaluations += 1
            cos, sin = torch.cos(phi).to(y.dtype), torch.sin(phi).to(y.dtype)
            return (cos * (y - cos * x0_hat) / sin) - sin * x0_hat

        scale = torch.sqrt(level_ends.alpha**2 + level_ends.sigma**2).tolist()
        x = x_T / scale[0]
        if phi[0] > phi[1]:
            phi = phi.to(x.device)
            options = {"norm": _worst_sample, "step_t": phi[1:], "dtype": torch.float64}
            x = odeint(velocity, x, phi, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)[-1]
        x = x * scale[1]
        if to_clean:
            level, x_t = level_ends.at(1).like(x), x
            x = model.denoise_at(x_t, level, cond)
            if callback is not None:
                callback(evaluations, level, x_t, x)
        return x

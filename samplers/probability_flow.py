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
from samplers.adaptive import BoundedEvaluations, check_tolerances, dormand_prince
from samplers.base import Prepared, Sampler, Samples
from samplers.table import Callback, Projection
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


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

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    rtol: float = 1e-4
    atol: float = 1e-4

    order = 5
    noise = "none"

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol)

    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        require(
            num_steps is None,
            f"num_steps={num_steps}: ProbabilityFlow chooses its steps by rtol and atol; Heun() takes a number",
        )
        return torch.tensor([model.sde.t_max, model.sde.t_min, 0.0], dtype=torch.float64)

    def evaluated(self, model: ScoreModel, grid: Tensor) -> None:
        return None

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        return _PreparedFlow(self, model, grids.check_grid(model.sde, grid))


@final
class _PreparedFlow(Prepared):
    """`ProbabilityFlow` on a model and between the ends of a grid."""

    def __init__(self, sampler: ProbabilityFlow, model: ScoreModel, grid: Tensor) -> None:
        self.sampler = sampler
        self.model = model
        self.grid = grid

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        require(
            project is None,
            "project: ProbabilityFlow chooses its steps and has no rows to project after; take Heun(), with a number",
        )
        check_tolerances(self.sampler.rtol, self.sampler.atol, x_T.dtype)
        sde = self.model.sde
        grid = self.grid
        to_clean = bool(grid[-1] == 0)
        first_last = sde.level(grid[:-1][[0, -1]] if to_clean else grid[[0, -1]])
        phi = torch.atan(first_last.noise_level)
        first_phi, last_phi = phi.tolist()
        evaluations = BoundedEvaluations("ProbabilityFlow")
        nfe = 0

        def denoise(x_t: Tensor, level: Level) -> Tensor:
            nonlocal nfe
            nfe += self.model.num_calls(level)
            x0_hat = self.model.denoise_at(x_t, level, cond)
            if callback is not None:
                callback(evaluations.count, level, x_t, x0_hat)
            evaluations.add(x0_hat, level.noise_level)
            return x0_hat

        def velocity(phi: Tensor, y: Tensor) -> Tensor:
            phi = phi.clamp(last_phi, first_phi)  # torchdiffeq's guess of a first step may go beyond the ends
            level = sde.at_noise_level(torch.tan(phi.double())).to(y.device, y.dtype)
            x0_hat = denoise(y * torch.sqrt(level.alpha**2 + level.sigma**2), level)
            cos = torch.cos(phi).to(y.dtype)
            sin = torch.sin(phi).to(y.dtype)
            return (cos * (y - cos * x0_hat) / sin) - sin * x0_hat

        scale = torch.sqrt(first_last.alpha**2 + first_last.sigma**2).tolist()
        y = x_T / scale[0]
        if phi[0] > phi[1]:
            phi = phi.to(y.device)
            y = dormand_prince(velocity, y, phi, _worst_sample, self.sampler.rtol, self.sampler.atol)
        x = y * scale[1]
        if to_clean:
            x = denoise(x, first_last[1].to(x.device, x.dtype))
        return Samples(x, nfe)

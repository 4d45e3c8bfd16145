"""Small inverse problems whose posteriors are known, and every model of a posterior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import SDE, ScoreModel
from scoresde.inverse import DPS, MMPS, DiffPIR, PiGDM, PosteriorModel
from scoresde.operators import MatrixOperator, MeasurementNoise, Operator
from scoresde.sde import Level
from tests.analytic import SDES
from tests.operators.cases import randn

Make = Callable[[ScoreModel, Operator, MeasurementNoise | float], PosteriorModel]
MODELS: dict[str, Make] = {
    "DPS": DPS,
    "PiGDM": PiGDM,
    "DiffPIR": DiffPIR,
    "MMPS": MMPS,
    "MMPS, exact": lambda model, operator, noise: MMPS(model, operator, noise, iterations=None),
}
PATHS = {name: SDES[name] for name in ("vp", "subvp", "ve", "flow")}
STD = 0.3


def matrix(measured: int = 3, dim: int = 6) -> Tensor:
    """A measurement matrix, float64."""
    return randn(measured, dim, seed=2) / 2


def measurement(measured: int = 3, seed: int = 3) -> Tensor:
    """What is measured of one sample."""
    return randn(measured, seed=seed)


def projection(measured: int = 3, dim: int = 6) -> MatrixOperator:
    """Of vectors."""
    return MatrixOperator(matrix(measured, dim))


def level_at(sde: SDE, share: float, device: torch.device | str = "cpu") -> Level:
    """A level at a share of the times of an SDE."""
    return sde.level(torch.tensor(sde.t_min + share * (sde.t_max - sde.t_min), dtype=torch.float64, device=device))


def states(level: Level, shape: tuple[int, ...], count: int = 4) -> Tensor:
    """States of about the size that they have at a level."""
    x = randn(count, *shape, seed=7).to(level.alpha)
    return level.alpha * x + level.sigma * randn(count, *shape, seed=8).to(level.alpha)


def dense_pull(A: Tensor, e: Tensor, v: Tensor | float, noise: Tensor | float) -> Tensor:
    """A' (v A A' + S)^-1 e by the whole matrix, for flat e `(B, m)` and S a number or `(B, m)`."""
    S = torch.diag_embed(torch.as_tensor(noise, dtype=e.dtype).to(e).expand(e.shape))
    v = torch.as_tensor(v, dtype=e.dtype).to(e).reshape(-1, 1, 1)
    return torch.linalg.solve(v * (A @ A.mT) + S, e[..., None])[..., 0] @ A

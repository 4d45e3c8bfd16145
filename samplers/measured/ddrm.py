r"""Denoising diffusion restoration (Kawar et al. 2022): a step for each singular value.

In u = x / alpha and the eigenbasis of A'A, coordinate i of x_0 is measured as ybar_i with noise of deviation
d_i = std / s_i (`Coordinates`; infinite where it is not). A step from noise level r to q draws, for estimates x0 of D,

    d_i > q:     N(x0 + sqrt(1 - eta^2) q (ybar - x0) / d_i,  eta^2 q^2)      more noise than the level
    d_i <= q:    N(x0 + eta_b (ybar - x0),  q^2 - eta_b^2 d_i^2)              less noise
    unmeasured:  N(x0 + sqrt(1 - eta^2) q (u - x0) / r,  eta^2 q^2)           DDIM

(their equations 7 and 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers.base import Prepared
from samplers.measured.base import Coordinates, OwnLoop, PreparedLoop, Step, check_spectrum, need_measured
from scoresde.errors import require
from scoresde.inverse.base import PosteriorModel
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


@final
@dataclass(frozen=True)
class DDRM(OwnLoop):
    """The sampler of Kawar et al. 2022, for linear operators with an eigenbasis. No backward pass.

    Order 0; one evaluation a step. The model is a `MeasuredModel`, and the condition the measurement.

    Attributes:
        eta: share of fresh noise in coordinates that follow the model.
        eta_b: share of the measurement in coordinates that it knows well.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        for name, value in {"eta": self.eta, "eta_b": self.eta_b}.items():
            require(0 <= value <= 1, f"{name}={value}: need 0 <= {name} <= 1")

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        model = need_measured(self, model)
        check_spectrum("DDRM", model)
        return _PreparedDDRM(self, model, grid)


@final
class _PreparedDDRM(PreparedLoop):
    def __init__(self, sampler: DDRM, model: PosteriorModel, grid: Tensor) -> None:
        super().__init__(model, grid)
        self.sampler = sampler

    def begin(self, x_T: Tensor, level: Level, y: Tensor, noise: Noise) -> tuple[Tensor, Step]:
        """The measured coordinates start about their values."""
        measured = Coordinates.of(self.model, y)
        r2 = level.noise_level**2
        coordinates = measured.basis.into(x_T)
        left = (1 - measured.variance / r2).clamp(min=0).sqrt()
        put = level.alpha * measured.value + left * coordinates

        def step(k: int, x: Tensor, x0_hat: Tensor, start: Level, end: Level) -> Tensor:
            return self._step(x, x0_hat, noise.normal(k + 1, tuple(x.shape[1:]), x.dtype), start, end, measured)

        return measured.basis.out_of(torch.where(measured.variance <= r2, put, coordinates)), step

    def _step(self, x: Tensor, x0_hat: Tensor, z: Tensor, start: Level, end: Level, measured: Coordinates) -> Tensor:
        eta, eta_b = self.sampler.eta, self.sampler.eta_b
        keep = (1 - eta**2) ** 0.5
        r = start.noise_level
        q = end.noise_level
        u, clean, eps = (measured.basis.into(part) for part in (x / start.alpha, x0_hat, z))
        from_y = measured.value - clean
        free = clean + keep * q * (u - clean) / r
        far = clean + keep * q * torch.where(measured.known, from_y / measured.variance.sqrt(), 0)
        near = clean + eta_b * from_y
        width = (q**2 - eta_b**2 * measured.variance).clamp(min=0).sqrt()
        mean = torch.where(measured.known, torch.where(measured.variance <= q**2, near, far), free)
        std = torch.where(measured.variance <= q**2, width, eta * q)
        return end.alpha * measured.basis.out_of(mean + std * eps)

r"""Denoising diffusion restoration (Kawar et al. 2022): a step for each singular value.

In u = x / alpha and the eigenbasis of A'A, coordinate i of x_0 is measured as ybar_i with noise of deviation
d_i = std / s_i (`Measured`; infinite where it is not). A step from noise level r to q draws, for estimates x0 of D,

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

from samplers.base import Prepared, Samples
from samplers.measured.base import Measured, OwnLoop, need_measured, noisy_levels, spectrum
from samplers.table import Callback, Projection
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import NoiseSource
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
        spectrum("DDRM", need_measured(self, model))
        return _PreparedDDRM(self, model, grid)


@final
class _PreparedDDRM(Prepared):
    def __init__(self, sampler: DDRM, model: ScoreModel, grid: Tensor) -> None:
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
        model = need_measured(self.sampler, self.model)
        operator, basis = spectrum("DDRM", model)
        y = model.split(cond)[0].to(x_T)
        variance = model.measurement_noise.variance(y)
        assert isinstance(variance, float)
        measured = Measured(operator, basis, y, variance)
        levels = noisy_levels(model, self.grid)
        on_device = levels.to(x_T.device, x_T.dtype)
        x = self._started(x_T, on_device[0], measured)
        for k in range(len(levels)):
            x0_hat = model.denoise_at(x, on_device[k], cond)
            if callback is not None:
                callback(k, on_device[k], x, x0_hat)
            if k + 1 == len(levels):
                break
            z = noise.normal(k + 1, tuple(x.shape[1:]), x.dtype)
            x = self._step(x, x0_hat, z, on_device[k], on_device[k + 1], measured)
            if project is not None:
                x = project(k, on_device[k + 1], x)
        if self.grid[-1] == 0:
            clean = Level.clean().to(x.device, x.dtype)[0]
            x = self._step(x, x0_hat, torch.zeros_like(x), on_device[-1], clean, measured)
            if project is not None:
                x = project(len(levels) - 1, clean, x)
        return Samples(x, model.num_calls(levels))

    @staticmethod
    def _started(x_T: Tensor, level: Level, measured: Measured) -> Tensor:
        """The measured coordinates start about their values."""
        r2 = level.noise_level**2
        coordinates = measured.basis.into(x_T)
        left = (1 - measured.variance / r2).clamp(min=0).sqrt()
        put = level.alpha * measured.value + left * coordinates
        return measured.basis.out_of(torch.where(measured.variance <= r2, put, coordinates))

    def _step(self, x: Tensor, x0_hat: Tensor, z: Tensor, start: Level, end: Level, measured: Measured) -> Tensor:
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

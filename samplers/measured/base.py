"""What the samplers that use a measurement themselves share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import NoiseKind, Prepared, Sampler, Samples
from samplers.table import Callback, Projection
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.inverse.base import PosteriorModel
from scoresde.noise import Noise, NoiseSource
from scoresde.operators import Eigenbasis, LinearOperator
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


def need_measured(sampler: object, model: ScoreModel) -> PosteriorModel:
    """The model; raises `UsageError` if it does not know what is measured."""
    if not isinstance(model, PosteriorModel):
        raise UsageError(
            f"model of {type(model).__name__}: {sampler} needs to know the measurement. Last of all wrap it, as in "
            "MeasuredModel(model, operator, noise)"
        )
    return model


def need_noise(noise: NoiseSource) -> Noise:
    """The noise; raises `UsageError` if it has no streams."""
    if not isinstance(noise, Noise):
        raise UsageError(f"noise={type(noise).__name__}: this sampler needs Noise(seed, indices)")
    return noise


class Coordinates(NamedTuple):
    """Measurements in the eigenbasis of A'A, where they are some coordinates of x_0 with noise of known deviations.

    Attributes:
        basis: the eigenbasis.
        known: which coordinates are measured at all.
        value: `(B, ...)` the measured coordinates V'A'y / s^2; 0 elsewhere.
        variance: S / s^2, that of their noise; infinite elsewhere.
    """

    basis: Eigenbasis
    known: Tensor
    value: Tensor
    variance: Tensor

    @classmethod
    def of(cls, model: PosteriorModel, y: Tensor) -> Coordinates:
        """Those of measurements `(B, *measured_shape)`, for a model that `check_spectrum` accepts."""
        operator = model.operator
        noise = model.measurement_noise.variance(y)
        assert isinstance(operator, LinearOperator)
        basis = operator.eigenbasis
        assert basis is not None
        coordinates = basis.into(operator.adjoint(y))
        squares = basis.values.to(coordinates)
        known = squares > 0
        safe = torch.where(known, squares, 1)
        value = torch.where(known, coordinates / safe, 0)
        return cls(basis, known, value, torch.where(known, noise / safe, torch.inf))


def check_spectrum(sampler: str, model: PosteriorModel) -> None:
    """Raises `UsageError` if the operator has no eigenbasis of A'A, or the noise is not of one deviation."""
    operator = model.operator
    require(
        isinstance(operator, LinearOperator) and operator.eigenbasis is not None,
        f"operator={operator}: {sampler} needs a linear operator with a known eigenbasis of A'A; MMPS, DPS and "
        "SplitGibbs take any",
    )
    require(
        not isinstance(model.measurement_noise.variance(torch.zeros(())), Tensor),
        f"noise={model.measurement_noise}: {sampler} needs Gaussian noise; MMPS, PiGDM and SplitGibbs take any",
    )


class OwnLoop(Sampler):
    """A sampler with a loop of its own, one estimate of clean data a step."""

    @property
    def order(self) -> int:
        return 0

    @property
    def noise(self) -> NoiseKind:
        return "independent"

    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        return grids.uniform_log_snr(model.sde, 100 if num_steps is None else num_steps)

    @final
    def evaluated(self, model: ScoreModel, grid: Tensor) -> Level:
        return _ends(model, grid)[0]


Step = Callable[[int, Tensor, Tensor, Level, Level], Tensor]
"""The row, x_t, the estimate of x_0, the levels of start and end, to the state at the end."""


class PreparedLoop(Prepared):
    """The loop: an estimate at each level but the last, and a step from there."""

    def __init__(self, model: PosteriorModel, grid: Tensor) -> None:
        self.model: PosteriorModel = model
        self.grid = grid

    @abstractmethod
    def begin(self, x_T: Tensor, level: Level, y: Tensor, noise: Noise) -> tuple[Tensor, Step]:
        """The state to begin with, and what steps are, for x_T at a level and measurements of its batch."""

    @final
    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        starts, ends = (part.to(x_T.device, x_T.dtype) for part in _ends(self.model, self.grid))
        y = self.model.split(cond)[0].to(x_T)
        x, step = self.begin(x_T, starts[0], y, need_noise(noise))
        for k in range(len(starts)):
            x0_hat = self.model.denoise_at(x, starts[k], cond)
            if callback is not None:
                callback(k, starts[k], x, x0_hat)
            x = step(k, x, x0_hat, starts[k], ends[k])
            if project is not None:
                x = project(k, ends[k], x)
        return Samples(x, self.model.num_calls(starts))


def _ends(model: ScoreModel, grid: Tensor) -> tuple[Level, Level]:
    """The levels that the steps along a grid start from, and those that they reach, clean data among them."""
    grid = grids.check_grid(model.sde, grid)
    noisy = model.sde.level(grid[grid > 0])
    whole = Level.join(torch.cat, [noisy, Level.clean()]) if grid[-1] == 0 else noisy
    return whole[:-1], whole[1:]

"""What the samplers that use a measurement themselves share."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import NoiseKind, Sampler
from scoresde.errors import UsageError, require
from scoresde.inverse.base import PosteriorModel
from scoresde.operators import LinearOperator
from scoresde.operators.base import Eigenbasis
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


def spectrum(sampler: str, model: PosteriorModel) -> tuple[LinearOperator, Eigenbasis]:
    """The operator with the eigenbasis of A'A.

    Raises:
        UsageError: if the operator has none, or the noise is not that of one deviation.
    """
    operator = model.operator
    basis = operator.eigenbasis if isinstance(operator, LinearOperator) else None
    if basis is None:
        raise UsageError(
            f"operator={operator}: {sampler} needs a linear operator with a known eigenbasis of A'A; MMPS, DPS and "
            "SplitGibbs take any"
        )
    require(
        not isinstance(model.measurement_noise.variance(torch.zeros(())), Tensor),
        f"noise={model.measurement_noise}: {sampler} needs Gaussian noise; MMPS, PiGDM and SplitGibbs take any",
    )
    assert isinstance(operator, LinearOperator)
    return operator, basis


class Measured:
    """Measurements in the eigenbasis of A'A, where they are some coordinates of x_0 with noise of known deviations.

    Attributes:
        basis: the eigenbasis.
        known: which coordinates are measured at all.
        value: `(B, ...)` the measured coordinates V'A'y / s^2; 0 elsewhere.
        variance: S / s^2, that of their noise; infinite elsewhere.
    """

    def __init__(self, operator: LinearOperator, basis: Eigenbasis, y: Tensor, noise: float) -> None:
        coordinates = basis.into(operator.adjoint(y))
        squares = basis.values.to(coordinates)
        self.basis = basis
        self.known = squares > 0
        safe = torch.where(self.known, squares, 1)
        self.value = torch.where(self.known, coordinates / safe, 0)
        self.variance = torch.where(self.known, noise / safe, torch.inf)


class OwnLoop(Sampler):
    """A sampler with a loop of its own, one estimate of clean data at each level of a grid."""

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
        return noisy_levels(model, grid)


def noisy_levels(model: ScoreModel, grid: Tensor) -> Level:
    """The levels of a grid above noise level 0."""
    grid = grids.check_grid(model.sde, grid)
    return model.sde.level(grid[grid > 0])

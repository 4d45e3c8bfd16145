"""The model of a known distribution."""

from __future__ import annotations

import contextlib
from typing import final

import torch
from torch import Tensor

from scoresde.condition import Condition
from scoresde.errors import UsageError
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level
from scoresde.targets import Target


@final
class ExactScoreModel(ScoreModel):
    """The true score of a known distribution: no network, no error."""

    def __init__(self, target: Target, sde: SDE) -> None:
        self.target = target
        self.sde = sde
        self.shape = target.shape

    @property
    def sigma_data(self) -> float:
        return self.target.sigma_data

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def dtype(self) -> torch.dtype:
        return self.target.dtype

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        self._check_shape(x_t)
        self.check_cond(cond)
        return self.target.denoise(x_t, level.alpha, level.sigma)

    def check_cond(self, cond: Condition) -> None:
        if cond is not None:
            raise UsageError("cond: an exact model of one distribution takes none; leave it out")

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return None

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExactScoreModel:
        return ExactScoreModel(self.target.to(device, dtype), self.sde)

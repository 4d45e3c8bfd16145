"""A model whose network takes few samples at a time, for algorithms that follow a fixed number of samples together."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scoresde import condition
from scoresde._batches import batches
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.score_model import GridModel, ScoreModel, WrappedModel
from scoresde.sde import Level


@final
class SplitModel(WrappedModel):
    """A model that is called with at most `batch_size` samples at a time, however many it is asked about.

    Its states are few beside the features inside a network. So a run that follows 32 images together needs the memory
    of as many as are evaluated at a time.
    """

    def __init__(self, model: ScoreModel, batch_size: int) -> None:
        super().__init__(model)
        require(batch_size >= 1, f"batch_size={batch_size}: need at least 1")
        self.batch_size = batch_size

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        if len(x_t) <= self.batch_size:
            return self.model.denoise_at(x_t, level, cond)
        parts = []
        for part in batches(len(x_t), self.batch_size):
            at = level[part] if level.t.ndim else level
            parts.append(self.model.denoise_at(x_t[part], at, condition.take(cond, part)))
        return torch.cat(parts)

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        parts = list(batches(len(like), self.batch_size))
        if len(parts) <= 1:
            return self.model.on_grid(levels, like)
        made = {size: self.model.on_grid(levels, like[:size]) for size in {part.stop - part.start for part in parts}}
        factors = made[parts[0].stop]

        def evaluate(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            outputs = [made[part.stop - part.start].network(k, x_t[part], condition.take(cond, part)) for part in parts]
            return torch.cat(outputs)

        return GridModel(factors.c_skip, factors.c_out, evaluate)

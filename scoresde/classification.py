r"""Training of noise-conditional classifiers: cross-entropy on x_t, with the times of a denoising objective.

The mean of -log q(y | x_t) over samples and noises is smallest at q = p(y | x_t), at each level apart (Dhariwal and
Nichol 2021, section 4). Which levels are drawn how often decides where a network of limited size is accurate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.condition import Condition, describe
from scoresde.errors import UsageError
from scoresde.models.classifier import NoisyClassifier
from scoresde.noise import BatchNoise
from scoresde.objective import Averaged, Batch, Objective, TrainingTimes, UniformTimes, times_and_noise


@final
@dataclass(frozen=True)
class ClassificationObjective(Objective[NoisyClassifier]):
    """-log p(y | x_t) in nats, y the condition of a sample. A learned path is not trained."""

    times: TrainingTimes = field(default_factory=UniformTimes)

    trains = NoisyClassifier

    def draw(self, model: NoisyClassifier, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return times_and_noise(self.times, model, batch, noise)

    def at(
        self,
        model: NoisyClassifier,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        with torch.no_grad():  # a learned path would lower this loss by moving to levels of little noise
            level = model.sde.level(draws["t"])
            wide = level.match_rank(draws["eps"])
            x_t = wide.alpha * model.codec.encode(batch.raw, model.dtype) + wide.sigma * draws["eps"]
        return F.cross_entropy(model.logits(x_t, level), classes(batch.cond), reduction="none")


def classes(cond: Condition) -> Tensor:
    """The classes `(B,)` that a condition is, as whole numbers; see `NoisyClassifier.check_cond`."""
    if not isinstance(cond, Tensor):
        raise UsageError(f"cond: {describe(cond)}; a classifier needs a label for each sample")
    return cond.long()

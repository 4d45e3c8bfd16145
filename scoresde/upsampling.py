r"""Upsampling: a model of samples given their low resolution, the second stage of a cascade (Ho et al. 2022).

The condition is made of the sample itself, in the model's units. With R the map of `scoresde.resize`,

    y = R x_0 + s eps,   image = R' y,

R to 1/factor of the size and R' back, s uniform on [0, largest_noise] in training. The network sees the image behind
the channels of x_t, and is told s. The noise hides what a first stage gets wrong, as it will never give images like
those of the training set to the last digit (noise-conditioning augmentation; Ho et al. 2022, section 4.2; Saharia et
al. 2022, section 2.5). In sampling R x_0 is a sample of the first stage and s is one number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import BatchNoise
from scoresde.objective import Averaged, Batch, DenoisingObjective, Objective
from scoresde.resize import check_kernel, resize


@final
@dataclass(frozen=True)
class UpsamplingObjective(Objective[NetworkScoreModel]):
    """Another objective, with the low resolution of each sample as its condition.

    The network needs `image_channels`, as many as a sample has, and `keeps_image`.

    Attributes:
        objective: the loss.
        factor: of sizes, 2 or more.
        kernel, antialias: of `resize`, both ways.
        largest_noise: the largest s, in the model's units.
    """

    objective: Objective = field(default_factory=DenoisingObjective)
    factor: int = 2
    kernel: str = "bicubic"
    antialias: bool = True
    largest_noise: float = 0.5

    def __post_init__(self) -> None:
        require(
            not isinstance(self.objective, UpsamplingObjective) and self.objective.trains is NetworkScoreModel,
            f"objective={type(self.objective).__name__}: need one of score models, such as DenoisingObjective",
        )
        require(self.factor >= 2, f"factor={self.factor}: need at least 2")
        check_kernel(self.kernel)
        require(self.largest_noise >= 0, f"largest_noise={self.largest_noise}: must not be negative")

    @property
    def learns_variance(self) -> bool:  # type: ignore[override]
        """Whether the other objective does."""
        return self.objective.learns_variance

    def low_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample at low resolution.

        Raises:
            UsageError: for a shape that the factor does not divide.
        """
        require(
            len(shape) >= 2 and all(n % self.factor == 0 for n in shape[1:]),
            f"objective.factor={self.factor}: must divide the sizes of samples, and they have the shape {shape}",
        )
        return (shape[0], *(n // self.factor for n in shape[1:]))

    def reduce(self, x: Tensor) -> Tensor:
        """Samples at low resolution, without noise."""
        return resize(x, self.low_shape(tuple(x.shape[1:]))[1:], self.kernel, self.antialias)

    def condition(self, low: Tensor, noise_level: Tensor, eps: Tensor, cond: Condition = None) -> Condition:
        """The condition of an upsampler.

        Args:
            low: `(B, C, *sizes)` samples at low resolution, in the upsampler's units.
            noise_level: `(B,)` s.
            eps: standard normal numbers of the shape of `low`.
            cond: labels, or all other parts of the condition.
        """
        noisy = low + match_rank(noise_level, low).to(low) * eps
        sizes = [n * self.factor for n in low.shape[2:]]
        image = resize(noisy, sizes, self.kernel, self.antialias)
        return {**_parts(cond), "image": image, "image_noise": noise_level}

    def draw(self, model: NetworkScoreModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return {
            **self.objective.draw(model, batch, noise),
            "image noise": self.largest_noise * noise.uniform("image noise", dtype=model.dtype),
            "image eps": noise.normal("image eps", self.low_shape(model.shape), model.dtype),
        }

    def at(
        self,
        model: NetworkScoreModel,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        """The loss of the other objective, given the low resolution."""
        with torch.no_grad():
            low = self.reduce(model.codec.encode(batch.raw, model.dtype))
            cond = self.condition(low, draws["image noise"], draws["image eps"], batch.cond)
        return self.objective.at(model, Batch(batch.raw, cond), draws, averaged)


def _parts(cond: Condition) -> Mapping[str, Condition]:
    """A condition as a dict: labels and vectors get their names."""
    if isinstance(cond, Tensor):
        return {"vector" if cond.is_floating_point() else "label": cond}
    return {} if cond is None else cond

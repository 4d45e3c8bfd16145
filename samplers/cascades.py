"""A cascade: small samples by a first model, made larger by upsamplers (Ho et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from samplers.base import Sampler, Samples
from samplers.sampling import sample
from scoresde import condition
from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.models.base import NetworkModel
from scoresde.noise import Noise, key_of
from scoresde.score_model import ScoreModel, WrappedModel
from scoresde.upsampling import UpsamplingObjective


@final
@dataclass(frozen=True)
class Stage:
    """A model of a cascade, and how it is sampled from.

    Attributes:
        model: the model, guided if it is to be.
        sampler: the sampler.
        num_steps: of its grid; its default if None.
        upsampling: what an upsampler was trained by; None for the first stage.
        noise: s, the deviation of the noise on what an upsampler is given, in its units.
    """

    model: ScoreModel
    sampler: Sampler
    num_steps: int | None = None
    upsampling: UpsamplingObjective | None = None
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.upsampling is not None:
            check_noise(self.upsampling, self.noise, "noise")


def check_noise(upsampling: UpsamplingObjective, noise: float, name: str) -> None:
    """Raises `UsageError` for a noise that an upsampler was not trained with."""
    largest = upsampling.largest_noise
    require(0 <= noise <= largest, f"{name}={noise}: this upsampler was trained with noise from 0 to {largest:g}")


def cascade(
    stages: Sequence[Stage],
    num_samples: int,
    *,
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[Samples]:
    """Draws from a cascade: the samples of each stage, `(num_samples, *shape)`, in the units of its model.

    Samples go from a stage to the next as raw data, decoded by the codec of the one and encoded by that of the other.
    Sample i depends on its index and the seed, as of `sample`; those of the first stage are what `sample` draws.

    Args:
        stages: a model of small samples, and upsamplers.
        num_samples: how many.
        cond: conditions of all stages, as of `sample`.
        seed: which noise.
        batch_size: samples at a time.

    Raises:
        UsageError: for stages that do not meet; before anything is drawn.

    Example:
        small, large = cascade([Stage(base, Heun()), Stage(upsampler, Heun(), upsampling=UpsamplingObjective())], 16)
    """
    require(len(stages) >= 2, f"stages: {len(stages)} of them; need a model of small samples and an upsampler, or more")
    require(
        stages[0].upsampling is None, "stages[0]: is an upsampler (upsampling=...); begin with a model of small samples"
    )
    for k in range(1, len(stages)):
        upsampling = stages[k].upsampling
        require(
            upsampling is not None, f"stages[{k}]: is no upsampler; give upsampling=, the objective that trained it"
        )
        assert upsampling is not None
        check_meets(stages[k - 1].model, stages[k].model, upsampling, (f"stages[{k - 1}]", f"stages[{k}]"))
    cond = condition.from_values(cond, num_samples)
    first = stages[0]
    drawn = [
        sample(
            first.model,
            first.sampler,
            num_samples,
            num_steps=first.num_steps,
            cond=cond,
            seed=seed,
            batch_size=batch_size,
        )
    ]
    for k, stage in enumerate(stages[1:], 1):
        raw = codec_of(stages[k - 1].model).decode(drawn[-1].x)
        assert stage.upsampling is not None
        given = low_condition(stage.model, stage.upsampling, raw, stage.noise, stage_seed(seed, k), cond)
        drawn.append(
            sample(
                stage.model,
                stage.sampler,
                num_samples,
                num_steps=stage.num_steps,
                cond=given,
                seed=stage_seed(seed, k),
                batch_size=batch_size,
            )
        )
    return drawn


def stage_seed(seed: int, stage: int) -> int:
    """The seed of a stage, whose noise is independent of that of the others; the first has the seed itself."""
    return key_of(seed, "stage", stage) if stage else seed


def low_condition(
    model: ScoreModel,
    upsampling: UpsamplingObjective,
    raw: Tensor,
    noise: float,
    seed: int,
    cond: Condition,
    first_index: int = 0,
) -> Condition:
    """The condition of an upsampler, on its device.

    Args:
        model: the upsampler.
        upsampling: what it was trained by.
        raw: samples of the stage before, decoded.
        noise: s.
        seed: of the stage.
        cond: all other conditions.
        first_index: index of the first sample.
    """
    low = codec_of(model).encode(raw.to(model.device), model.dtype)
    index = first_index + torch.arange(len(low), device=low.device)
    eps = Noise(seed, index).stream("image eps").normal(0, low.shape[1:], low.dtype)
    cond = condition.to(cond, low.device)
    return upsampling.condition(low, torch.full((len(low),), noise, dtype=low.dtype, device=low.device), eps, cond)


def check_meets(before: ScoreModel, model: ScoreModel, upsampling: UpsamplingObjective, names: tuple[str, str]) -> None:
    """Raises `UsageError` unless an upsampler takes what the stage before gives; `names` are those of the two."""
    raw = codec_of(before).decode(torch.zeros(1, *before.shape, dtype=before.dtype, device=before.device))
    given = codec_of(model).encoded_shape(tuple(raw.shape[1:]))
    taken = upsampling.low_shape(model.shape)
    require(
        given == taken,
        f"{names[1]}: makes samples of shape {model.shape} of {taken}, and {names[0]} gives {given}; need stages that "
        "meet",
    )


def codec_of(model: ScoreModel) -> Codec:
    """The codec of a model that others may wrap; the identity for a model without one."""
    while isinstance(model, WrappedModel):
        model = model.model
    return model.codec if isinstance(model, NetworkModel) else Scaling()

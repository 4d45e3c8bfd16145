"""Training from a tensor, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require
from scoresde.objective import DenoisingObjective, Objective
from scoresde.score_model import NetworkScoreModel
from scoresde.training.trainer import Trainer, TrainingOptions

if TYPE_CHECKING:
    import numpy as np

    ArrayLike = Tensor | np.ndarray[Any, Any] | Sequence[Any]


def fit(
    model: NetworkScoreModel,
    x_0: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    objective: Objective | None = None,
    settings: TrainingOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> NetworkScoreModel:
    """Trains a model in memory and returns a copy of it with averaged weights: sample from what is returned.

    The model that is passed in ends with the last weights of the optimiser, which are noisier.

    Args:
        model: the model; it is trained in place, on its device and in its type.
        x_0: data in the model's units, `(N, *model.shape)`: floats in a tensor, a numpy array or lists.
        labels: `(N,)` integers for a class-conditional network.
        objective: what to minimise; by default uniform times and the error of the noise.
        settings: how to optimise.
        seed: of batches, times and noises. (The weights you pass in have their own.)
        progress: show a bar.

    Raises:
        UsageError: for data that holds NaN, or does not fit the model.
    """
    from tqdm import trange

    values = _tensor("x_0", x_0)
    require(
        values.is_floating_point(),
        f"x_0 of type {values.dtype}: need floats in the model's units; for raw values 0..255 give x_0 / 127.5 - 1",
    )
    classes = None if labels is None else _tensor("labels", labels)
    if classes is not None and not classes.is_floating_point():
        classes = classes.long()
    trainer = Trainer(
        model, ArrayData(values, classes), objective or DenoisingObjective(), settings or TrainingOptions(), seed
    )
    bar = trange(trainer.settings.num_steps, disable=not progress, desc="train", unit="step")
    for step in bar:
        trainer.step()
        if (step + 1) % 100 == 0 or step + 1 == trainer.settings.num_steps:
            bar.set_postfix(loss=f"{trainer.pop_metrics()['loss']:.4f}")
    return trainer.ema_model


def _tensor(name: str, values: ArrayLike) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: cannot be made a tensor ({error}); give a tensor, a numpy array or lists") from error

"""Training from a tensor, in one call."""

from __future__ import annotations

from torch import Tensor

from scoresde.data.arrays import ArrayData
from scoresde.objective import DenoisingObjective
from scoresde.score_model import NetworkScoreModel
from scoresde.training.trainer import Trainer, TrainingSettings


def fit(
    model: NetworkScoreModel,
    x_0: Tensor,
    labels: Tensor | None = None,
    *,
    objective: DenoisingObjective | None = None,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> NetworkScoreModel:
    """Trains a model in memory and returns it with averaged weights, ready to sample from.

    Args:
        model: the model; it is trained in place, on its device.
        x_0: data in the model's units, `(N, *model.shape)`.
        labels: `(N,)` integers for a class-conditional network.
        objective: what to minimise; by default uniform times and the error of the noise.
        settings: how to optimise.
        seed: of batches, times and noises. (The weights you pass in have their own.)
        progress: show a bar.

    Raises:
        UsageError: for data that holds NaN, or does not fit the model.
    """
    from tqdm import trange

    trainer = Trainer(
        model, ArrayData(x_0, labels), objective or DenoisingObjective(), settings or TrainingSettings(), seed
    )
    bar = trange(trainer.settings.num_steps, disable=not progress, desc="train", unit="step")
    for step in bar:
        trainer.step()
        if (step + 1) % 100 == 0 or step + 1 == trainer.settings.num_steps:
            bar.set_postfix(loss=f"{trainer.pop_metrics()['loss']:.4f}")
    return trainer.ema_model

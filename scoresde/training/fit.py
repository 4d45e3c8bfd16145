"""Training from a tensor, in one call."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde import condition
from scoresde.autoencoding import AutoencodingObjective
from scoresde.classification import ClassificationObjective
from scoresde.codec import Scaling
from scoresde.contrastive import ContrastiveObjective
from scoresde.data.arrays import ArrayData
from scoresde.data.latents import encoded
from scoresde.errors import UsageError, require
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.base import TrainedModel
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.objective import DenoisingObjective, Model, Objective
from scoresde.training.options import TrainingOptions
from scoresde.training.trainer import DivergedError, Trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    ArrayLike = Tensor | np.ndarray[Any, Any] | Sequence[Any]

USUAL: dict[type[TrainedModel], Callable[[], Objective]] = {
    Autoencoder: AutoencodingObjective,
    ContrastiveTextModel: ContrastiveObjective,
    NoisyClassifier: ClassificationObjective,
}


def fit(
    model: Model,
    data: ArrayLike,
    cond: Any = None,
    *,
    objective: Objective | None = None,
    options: TrainingOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Trains a model in memory and returns a copy of it with averaged weights, from which to sample.

    The model that is passed in ends with the last weights of the optimiser, which are noisier. The scale of an
    autoencoder's latents is measured at the end. Data of a latent model are encoded once, before the first step.

    Args:
        model: the model; it is trained in place, on its device and in its type.
        data: `(N, *raw_shape)`, in a tensor, a numpy array or lists: floats in the model's units for a model without a
            codec, otherwise raw data for its codec.
        cond: conditions with one entry a sample: `(N,)` integers for a class-conditional network, or any others that
            the network takes (see `scoresde.condition`). Of a `NoisyClassifier` the labels; of a
            `ContrastiveTextModel` the captions.
        objective: the loss; by default, at uniform times, the error of the noise. The default is the cross-entropy of
            a `NoisyClassifier`, `AutoencodingObjective()` of an `Autoencoder`, and `ContrastiveObjective()` of a
            `ContrastiveTextModel`.
        options: options of the optimisation.
        seed: seed of batches, times and noises, not of the initial weights.
        progress: whether to show a bar.

    Raises:
        UsageError: for data that holds NaN, or does not fit the model; for options with `ema_lengths`.
    """
    values = _tensor(data)
    require(
        values.is_floating_point() or model.codec != Scaling(),
        f"data of type {values.dtype}: need floats in the model's units; for raw values 0..255 make the model with "
        "codec=Scaling(127.5, 127.5)",
    )
    options = options or TrainingOptions()
    require(
        not options.ema_lengths,
        f"training.ema_lengths={options.ema_lengths}: fit keeps no snapshots; use a Trainer and save_snapshot",
    )
    samples = ArrayData(values, condition.from_values(cond, len(values) if values.ndim else 0))
    with _in_latents(model, samples) as training_data:
        trainer = Trainer(model, training_data, objective or _usual_objective(model), options, seed)
        _train(trainer, progress)
    with trainer.average.applied(model):
        fitted = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(fitted, Autoencoder):
        fitted.measure_latents(samples.blocks())
    return fitted


def _train(trainer: Trainer[Any], progress: bool) -> None:
    """Takes all steps; raises `DivergedError` if the last ones had no finite loss."""
    from tqdm import trange

    loss = None
    bar = trange(trainer.options.num_steps, disable=not progress, desc="train", unit="step")
    for step in bar:
        trainer.step()
        if (step + 1) % 100 == 0 or step + 1 == trainer.options.num_steps:
            loss = trainer.pop_metrics()["loss"]
            bar.set_postfix(loss="not finite" if loss is None else f"{loss:.4f}")
    if loss is None:
        raise DivergedError(f"the last steps before step {trainer.step_number} had no finite loss: lower training.lr")


@contextlib.contextmanager
def _in_latents(model: TrainedModel, data: ArrayData) -> Iterator[ArrayData]:
    """The data to train on; for a latent model they are its latents, of which the model knows while this is entered."""
    codec = model.codec
    if not isinstance(codec, AutoencoderCodec):
        yield data
        return
    latents = encoded(data, codec, model.device)
    model.codec = latents.codec
    try:
        yield latents
    finally:
        model.codec = codec


def _usual_objective(model: TrainedModel) -> Objective:
    return USUAL.get(type(model), DenoisingObjective)()


def _tensor(values: ArrayLike) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"data: cannot be converted to a tensor ({error}); give a tensor, a numpy array or lists"
        ) from error

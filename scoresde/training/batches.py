"""The data of training steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from scoresde import condition
from scoresde.data.arrays import ArrayData
from scoresde.errors import require
from scoresde.models.base import NetworkModel
from scoresde.noise import key_of
from scoresde.objective import Batch


class Batches(ABC):
    """Batches of raw data, each a function of its step, so that a resumed run sees the same batches.

    Attributes:
        raw_shape: shape of one raw sample.
        quantized: whether the raw data are whole numbers.
    """

    raw_shape: tuple[int, ...]
    quantized: bool

    @abstractmethod
    def check(self, model: NetworkModel) -> None:
        """Raises `UsageError` for data that the model cannot take."""

    @abstractmethod
    def batch(self, step: int, share: slice, device: torch.device) -> Batch:
        """The samples of one process: those at the places `share` of the batch of a step."""


def check_shape(raw_shape: tuple[int, ...], model: NetworkModel) -> None:
    """Raises `UsageError` unless the model's codec encodes data of a shape to the model's shape."""
    encoded = model.codec.encoded_shape(raw_shape)
    require(
        encoded == model.shape,
        f"data of shape {raw_shape}: {type(model.codec).__name__} encodes it as {encoded}, and the model takes "
        f"{model.shape}",
    )


@final
class ArrayBatches(Batches):
    """Batches of a data set in memory: slices of a fresh permutation in each epoch.

    Args:
        data: the data set; it is moved to the device of the batches.
        batch_size: size of the batch of all processes together.
        seed: seed of the permutations.
    """

    def __init__(self, data: ArrayData, batch_size: int, seed: int = 0) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.raw_shape = data.shape
        self.quantized = not data.values.is_floating_point()
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def check(self, model: NetworkModel) -> None:
        check_shape(self.raw_shape, model)
        model.check_cond(self.data.cond)

    def batch(self, step: int, share: slice, device: torch.device) -> Batch:
        if self.data.values.device != device:
            self.data = self.data.to(device)
        index = self._places(step, device)[share]
        return Batch(self.data.values[index], condition.take(self.data.cond, index))

    def _places(self, step: int, device: torch.device) -> Tensor:
        """The indices of the samples in the batch of a step."""
        count = len(self.data)
        size = self.batch_size
        per_epoch = max(1, count // size)
        epoch, position = divmod(step, per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(key_of(self.seed, "epoch", epoch))
            repeats = -(-size // count)  # a batch larger than the data goes through it several times
            order = torch.cat([torch.randperm(count, generator=generator) for _ in range(repeats)])
            if device.type == "cuda":
                order = order.pin_memory()  # otherwise the copy would wait for the device
            self._epoch = epoch
            self._order = order.to(device, non_blocking=True)
        return self._order[position * size : (position + 1) * size]

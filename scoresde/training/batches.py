"""The data of training steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor

from scoresde import condition
from scoresde.condition import Condition
from scoresde.data.arrays import ArrayData
from scoresde.errors import require
from scoresde.models.base import TrainedModel
from scoresde.noise import key_of
from scoresde.objective import Batch

CHECKED = 64  # samples whose encoded captions are checked
AHEAD = 2  # batches that are read before they are asked for


class Batches(ABC):
    """Batches of raw data, each a function of its step, so that a resumed run sees the same batches.

    Attributes:
        raw_shape: shape of one raw sample.
        quantized: whether the raw data are whole numbers.
    """

    raw_shape: tuple[int, ...]
    quantized: bool

    @abstractmethod
    def check(self, model: TrainedModel) -> None:
        """Raises `UsageError` for data that the model cannot take."""

    @abstractmethod
    def batch(self, step: int, share: slice, device: torch.device) -> Batch:
        """The samples of one process: those at the places `share` of the batch of a step."""


def check_shape(raw_shape: tuple[int, ...], model: TrainedModel) -> None:
    """Raises `UsageError` unless the model's codec encodes data of a shape to the model's shape."""
    encoded = model.codec.encoded_shape(raw_shape)
    require(
        encoded == model.shape,
        f"data of shape {raw_shape}: {type(model.codec).__name__} encodes it as {encoded}, and the model takes "
        f"{model.shape}",
    )


def batches_of(data: ArrayData, batch_size: int, seed: int) -> Batches:
    """The batches of a data set; those in a file are read ahead."""
    batches = ArrayBatches(data, batch_size, seed)
    return batches if isinstance(data.values, Tensor) else Prefetched(batches)


@final
class ArrayBatches(Batches):
    """Batches of a data set: slices of a fresh permutation in each epoch.

    Args:
        data: the data set; what is in memory is moved to the device of the batches.
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

    def check(self, model: TrainedModel) -> None:
        check_shape(self.raw_shape, model)
        some = slice(None) if self.data.table is None else slice(CHECKED)
        model.check_cond(self.data.conditions(some))

    def batch(self, step: int, share: slice, device: torch.device) -> Batch:
        if isinstance(self.data.values, Tensor) and self.data.values.device != device:
            self.data = self.data.to(device)
        index = self._places(step, self.data.values.device)[share]
        cond = self.data.conditions(index)
        return Batch(self.data.values[index].to(device), condition.to(cond, device))

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


@final
class Prefetched(Batches):
    """Batches that another source makes, the next ones in a thread while a step is computed.

    They are the same as without: a batch is a function of its step. An error of the source is raised when its batch is
    asked for. The thread ends with this object.

    Args:
        batches: the source; it is used by one thread at a time.
    """

    def __init__(self, batches: Batches) -> None:
        self.raw_shape = batches.raw_shape
        self.quantized = batches.quantized
        self._batches = batches
        self._thread = ThreadPoolExecutor(1, "batches")
        self._waiting: dict[tuple[int, int, int], Future[Batch]] = {}

    def check(self, model: TrainedModel) -> None:
        self._batches.check(model)

    def batch(self, step: int, share: slice, device: torch.device) -> Batch:
        keys = [(step + k, share.start, share.stop) for k in range(1 + AHEAD)]
        for key in self._waiting.keys() - set(keys):  # after a jump to another step
            self._waiting.pop(key).cancel()
        for key in keys:
            if key not in self._waiting:
                pin = device.type == "cuda"  # otherwise the copy would wait for the device
                self._waiting[key] = self._thread.submit(_on_host, self._batches, key[0], share, pin)
        raw, cond = self._waiting.pop(keys[0]).result()
        return Batch(raw.to(device, non_blocking=True), _to(cond, device))


def _on_host(batches: Batches, step: int, share: slice, pin: bool) -> Batch:
    batch = batches.batch(step, share, torch.device("cpu"))
    return Batch(batch.raw.pin_memory(), condition.apply(Tensor.pin_memory, batch.cond)) if pin else batch


def _to(cond: Condition, device: torch.device) -> Condition:
    return condition.apply(lambda part: part.to(device, non_blocking=True), cond)

"""Exponentially averaged weights, kept as tensors beside the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from scoresde.score_model import evaluating


@final
class Average:
    """An average of a model's weights, by name.

    Buffers, such as the statistics of batch normalisation, are copied. The model itself is never copied: if its weights
    are sharded over processes, so is the average.

    Attributes:
        tensors: the averaged parameters and the copied buffers, by the names of the model's state; a tensor with two
            names in the model, such as tied weights, has both here.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        every = (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        self._first_names = {name: first[id(tensor)] for name, tensor in every}
        pairs = list(zip(self._parameters.values(), model.parameters(), strict=True))
        kinds = {type(average) for average, _ in pairs}  # sharded and whole tensors do not mix
        self._pairs = [tuple(zip(*(p for p in pairs if type(p[0]) is kind), strict=True)) for kind in kinds]
        self._copies = list(zip(self._buffers.values(), model.buffers(), strict=True))

    @property
    def tensors(self) -> dict[str, Tensor]:
        own = self._parameters | self._buffers
        return {name: own[first] for name, first in self._first_names.items()}

    @property
    def copied(self) -> list[str]:
        """Names of the buffers, which are copied, not averaged."""
        return [name for name, first in self._first_names.items() if first in self._buffers]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average <- decay average + (1 - decay) weights, of the model that it was made from."""
        for own, new in self._pairs:
            torch._foreach_lerp_(own, new, 1 - decay)
        self.copy_buffers()

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copies the buffers of the model that it was made from."""
        for average, buffer in self._copies:
            average.copy_(buffer)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """While entered, the model has the averaged weights and is in evaluation mode."""
        here = dict(model.named_parameters()) | dict(model.named_buffers())
        own = {name: tensor.detach().clone() for name, tensor in here.items()}
        with evaluating(model):
            try:
                self._copy(self.tensors, here)
                yield
            finally:
                self._copy(own, here)

    @staticmethod
    @torch.no_grad()
    def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])

"""What models with a network have in common."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from scoresde.codec import Codec
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.base import Network
from scoresde.parametrization import Input
from scoresde.score_model import check_state, evaluating
from scoresde.sde import SDE, Level


class TrainedModel(nn.Module, ABC):
    """A network with what a run must know of it: what is trained and saved.

    Attributes:
        role: what it is; also its name in the checkpoints of a run.
        own_state: names of its tensors that belong to none of its parts.
        network: the network.
        shape: shape of one sample, in the model's units.
        codec: the map from raw data to the model's units and back.
    """

    role: ClassVar[str]
    own_state: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, network: nn.Module, shape: Sequence[int], codec: Codec) -> None:
        super().__init__()
        is_shape = isinstance(shape, Sequence) and all(isinstance(size, Integral) and size > 0 for size in shape)
        require(is_shape, f"shape={shape!r}: need the shape of one sample, such as (2,)")
        require(isinstance(codec, Codec), f"codec={codec!r}: need a Codec, such as Scaling(center=127.5, scale=127.5)")
        self.network = network
        self.shape = tuple(int(size) for size in shape)
        self.codec = codec

    @abstractmethod
    def with_network(self, network: nn.Module) -> Self:
        """The same model around another network, such as a wrapper of its own."""

    @abstractmethod
    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` for conditions of a batch that the model cannot be trained with."""

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        tensor = self._any_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the state: float64 or float32."""
        return state_dtype(self.compute_dtype(torch.float32))

    def _any_tensor(self) -> Tensor | None:
        """A floating-point parameter or buffer, the network's if it has one."""
        tensors = chain(self.network.parameters(), self.network.buffers(), self.parameters(), self.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    def compute_dtype(self, default: torch.dtype) -> torch.dtype:
        """The type in which the network computes; the default if it has no tensors."""
        tensor = self._any_tensor()
        return default if tensor is None else tensor.dtype

    def contract(self) -> Network | None:
        """The network as a `Network`; None for another module, whose conditions are unknown."""
        inner = plain_network(self.network)
        return inner if isinstance(inner, Network) else None

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        """While entered, the network is in evaluation mode."""
        return evaluating(self)


class NetworkModel(TrainedModel):
    """A network under an SDE, with its view of x_t and of the noise.

    Attributes:
        network: called with c_in x_t `(B, *shape)` and c_noise `(B,)`.
        sde: the SDE under which it is trained.
    """

    def __init__(self, network: nn.Module, sde: SDE, shape: Sequence[int], codec: Codec) -> None:
        super().__init__(network, shape, codec)
        require(isinstance(sde, SDE), f"sde={sde!r}: need an SDE, such as VPSDE()")
        self.sde = sde

    @property
    @abstractmethod
    def sigma_data(self) -> float:
        """Standard deviation of the data over all entries, in the model's units."""

    @property
    @abstractmethod
    def input(self) -> Input:
        """The network's view of x_t and of the noise."""

    def inputs(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """What the network is given at a level: c_in x_t, and c_noise `(B,)`."""
        check_state(x_t, self.shape)
        compute = self.compute_dtype(x_t.dtype)
        c_in = self.input.c_in(level.match_rank(x_t), self.sigma_data)
        c_noise = self.input.c_noise(level).expand(x_t.shape[0]).to(state_dtype(compute))
        return (c_in * x_t).to(compute), c_noise


def plain_network(network: nn.Module) -> nn.Module:
    """The network without the wrappers that training in several processes and `torch.compile` put around it."""
    inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    inner = getattr(inner, "_orig_mod", inner)
    return inner if isinstance(inner, nn.Module) else network


def state_dtype(compute: torch.dtype) -> torch.dtype:
    """The type of the state for a network that computes in a type: float64 for float64, float32 for every other."""
    return torch.float64 if compute == torch.float64 else torch.float32

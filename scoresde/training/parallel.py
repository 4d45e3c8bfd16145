"""Several processes that train or sample as one."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.errors import require
from scoresde.models.base import TrainedModel
from scoresde.objective import Model


def share(count: int, part: int, num_parts: int) -> slice:
    """The slice of part 0, 1, ... of `count` things in a row, divided as evenly as possible."""
    return slice(count * part // num_parts, count * (part + 1) // num_parts)


@final
@dataclass(frozen=True)
class World:
    """This process among its peers; alone by default. Peers are started by torchrun and share each batch equally."""

    rank: int = 0
    size: int = 1

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The slice of this process's part of `count` things in a row."""
        return share(count, self.rank, self.size)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
            x /= self.size
        return x

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def wait(self, device: torch.device) -> None:
        """Waits until every process arrives here."""
        self.any(False, device)


ALONE = World()


class Parallel(ABC):
    """A way in which processes share a model in training."""

    @abstractmethod
    def wrap(self, model: Model) -> Model:
        """The model with which to compute losses: gradients of its network are averaged over the processes."""

    def groups(self, model: TrainedModel) -> list[list[nn.Parameter]]:
        """The parameters in groups, each of which torch can compute with at once."""
        return [list(model.parameters())]

    @abstractmethod
    def exchange(self, wrapped: TrainedModel, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context for a forward and a backward pass; gradients are exchanged in the last one of a step only."""

    @abstractmethod
    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the model, gathered from all processes; to be called in every process."""

    @abstractmethod
    def distribute(self, whole: Tensor, like: Tensor) -> Tensor:
        """A whole tensor, distributed over the processes like another one."""


@final
class Alone(Parallel):
    """One process."""

    def wrap(self, model: Model) -> Model:
        return model

    def exchange(self, wrapped: TrainedModel, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def distribute(self, whole: Tensor, like: Tensor) -> Tensor:
        return whole


@final
class Replicated(Parallel):
    """Each process holds all weights (torch's DistributedDataParallel)."""

    def wrap(self, model: Model) -> Model:
        network = DistributedDataParallel(model.network)
        return model.with_network(network)

    def exchange(self, wrapped: TrainedModel, last: bool) -> contextlib.AbstractContextManager[None]:
        network = wrapped.network
        assert isinstance(network, DistributedDataParallel)
        return contextlib.nullcontext() if last else network.no_sync()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor

    def distribute(self, whole: Tensor, like: Tensor) -> Tensor:
        return whole


@final
class Sharded(Parallel):
    """Each process holds a part of every weight of the network (torch's `fully_shard`), its gradient and moments.

    Args:
        model: the model; its network is sharded in place, unless it already is.
        world: the processes.
    """

    def __init__(self, model: TrainedModel, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        network = model.network
        if not isinstance(network, FSDPModule):
            mesh = init_device_mesh(model.device.type, (world.size,))
            for block in _blocks(network):
                fully_shard(block, mesh=mesh)
            # In place: the network becomes an FSDPModule. Whole weights must not outlive a forward pass, as averaged
            # weights may take their place before the next one.
            fully_shard(network, mesh=mesh, reshard_after_forward=True)
        assert isinstance(network, FSDPModule)
        self._network = network

    def wrap(self, model: Model) -> Model:
        return model

    def groups(self, model: TrainedModel) -> list[list[nn.Parameter]]:
        from torch.distributed.tensor import DTensor

        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for p in model.parameters():
            groups[isinstance(p, DTensor)].append(p)  # those of a learned SDE or codec are not sharded
        return [group for group in groups if group]

    def exchange(self, wrapped: TrainedModel, last: bool) -> contextlib.AbstractContextManager[None]:
        self._network.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def distribute(self, whole: Tensor, like: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The modules in a network's lists of layers. They are sharded one by one, so as not to be gathered all at once."""
    return [block for part in network.modules() if isinstance(part, nn.ModuleList) for block in part]


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """The world that torchrun made, and this process's device in it; the process alone without torchrun.

    Processes communicate by gloo on the CPU and by nccl on CUDA. On CUDA each takes the GPU of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE, device
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        require(
            device.index is None and local < torch.cuda.device_count(),
            f"device={str(device)!r}: {size} processes need a GPU each, and torch sees {torch.cuda.device_count()}; "
            "use --device cuda and fewer processes, or --device cpu",
        )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size()), device


def leave_world() -> None:
    """Waits for the other processes and closes the process group; after an error, torchrun ends them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

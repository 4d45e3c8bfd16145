"""Several processes that train or sample as one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from scoresde.errors import require


def share(count: int, part: int, num_parts: int) -> slice:
    """Part 0, 1, ... of `count` things in a row, divided as evenly as can be."""
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
        """This process's part of `count` things in a row."""
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
        """Waits until every process is here."""
        self.any(False, device)


ALONE = World()


def join_world(device: torch.device) -> tuple[World, torch.device]:
    """The world that torchrun made, and this process's device in it; the process alone without torchrun.

    Processes talk by gloo on the CPU and by nccl on CUDA, where each takes the GPU of its local rank.
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
    """Waits for the other processes and ends the talk with them; after an error it is torchrun that ends them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

"""What the machine refuses a step of training, memory or a compiler, said in one line with what to do."""

from __future__ import annotations

import torch
from torch import nn

from scoresde.errors import cannot_compile, out_of_memory, tried
from scoresde.training.options import TrainingOptions
from scoresde.training.parallel import World


def refusal(
    error: BaseException, options: TrainingOptions, world: World, network: nn.Module, device: torch.device
) -> str | None:
    """What an error in a step means for the user; None if it is not a refusal of the machine.

    Args:
        error: that was raised.
        options: of the training.
        world: the processes.
        network: in training.
        device: where it computes.
    """
    if out_of_memory(error):
        ways = _ways_to_save_memory(options, world, network)
        return (
            f"training: out of memory{tried(error)} with training.batch_size={options.batch_size} and "
            f"training.accumulate={options.accumulate}; set {', or '.join(ways)}"
        )
    if options.compile and cannot_compile(error):
        reason = str(error).strip().splitlines()[0]
        return (
            f"training.compile=True: torch cannot compile this training for {device.type} here ({reason}); install a "
            "compiler (of C++, for CUDA Triton) if there is none, or set it to False"
        )
    return None


def _ways_to_save_memory(options: TrainingOptions, world: World, network: nn.Module) -> list[str]:
    """Fields to change, with values to try, those first that leave the gradient as it is."""
    ways = []
    share = options.batch_size // world.size
    more = (k for k in range(2 * options.accumulate, share + 1) if share % k == 0)
    accumulate = next(more, None)
    if accumulate is not None:
        ways.append(
            f"config.training.accumulate={accumulate}, for the same gradient from {share // accumulate} samples at a "
            "time"
        )
    if getattr(network, "checkpointing", None) is False:
        ways.append("config.network.checkpointing=True, for the same gradient in more time")
    unit = world.size * options.accumulate
    smaller = options.batch_size // 2 // unit * unit
    if smaller > 0:
        ways.append(f"config.training.batch_size={smaller} for another run")
    return ways or ["a smaller config.network for another run"]

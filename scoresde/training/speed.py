"""Options that make steps faster and leave what is learned as it is, to rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from scoresde.errors import require
from scoresde.objective import Model
from scoresde.training.options import TrainingOptions
from scoresde.training.parallel import World


def prepared(model: Model, options: TrainingOptions, world: World) -> Model:
    """The model with which losses are computed, with the same weights: in another layout, compiled, or as it is.

    `training.channels_last` lays the weights of convolutions out with the channels last, in place. What convolutions
    emit then has that layout too. `training.compile` wraps the network, so that names of weights stay. With
    `training.cuda_graph`, torch records the kernels of its passes and replays them, each with one launch.

    Raises:
        UsageError: for options that do not suit the model or the processes.
    """
    require(
        not options.channels_last or len(model.shape) == 3,
        f"training.channels_last=True: is a layout of images, and the model has shape {model.shape}; set it to False",
    )
    require(
        not (options.compile and options.shard and world.size > 1),
        "training.compile=True, training.shard=True: weights that are spread over processes are not compiled; set one "
        "of the two to False",
    )
    require(
        not options.cuda_graph or (options.compile and model.device.type == "cuda"),
        f"training.cuda_graph=True: needs training.compile=True and a GPU, and the model is on {model.device}; set "
        "it to False",
    )
    if options.channels_last:
        model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not options.compile:
        return model
    network = torch.compile(model.network, mode="reduce-overhead" if options.cuda_graph else "default")
    assert isinstance(network, nn.Module)
    return model.with_network(network)


@contextlib.contextmanager
def fast_products(options: TrainingOptions, device: torch.device) -> Iterator[None]:
    """While entered on CUDA with `training.tf32`, products of float32 are computed in TF32, of 10 bits of mantissa."""
    if not (options.tf32 and device.type == "cuda"):
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

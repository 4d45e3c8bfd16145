"""Iteration over many samples, a batch at a time, and how large a batch may be without a training step.

Memory is counted in numbers that a network is given. Measured on U-Nets and MLPs (`benchmarks/memory.py`), a forward
pass without gradients holds a quarter or less of what a training step holds for the same samples: there every layer
keeps its output for the backward pass. A derivative, of a divergence or in calibration, holds as much as the step or
half as much again, once for each evaluation through which it goes. So

    forward          FORWARD * trained                        samples,
    derivative       FORWARD * trained / (GRAPH * graphs)     samples

need about the memory of a step on `trained` samples. Two bounds hold beside: `SMALL` numbers are always allowed, so
that points in the plane come in large batches whatever they were trained in, and more than `LARGE` never, so that a
model that was trained in large batches on another machine is evaluated here. A sample of few entries counts as
`NARROWEST`, because layers are wider than it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from scoresde.errors import require

FORWARD = 4  # samples of a forward pass in the memory of a training step on one
GRAPH = 6  # forward passes that a derivative through one evaluation counts as
NARROWEST = 32  # entries that a sample counts as at least
SMALL = 2**16  # 2,048 points in the plane, or 5 images of 3x64x64
LARGE = 2**20  # 32,768 points, or 85 images


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """Slices of at most `batch_size` samples that cover 0 .. count - 1 in order."""
    for first in range(0, count, batch_size):
        yield slice(first, min(first + batch_size, count))


def choose_batch_size(
    given: int | None,
    shape: Sequence[int],
    device: torch.device,
    *,
    trained: int | None = None,
    graphs: int = 0,
) -> int:
    """The number of samples at a time: as many as are given, or else as many as a training step leaves memory for.

    Args:
        given: the user's number, or None.
        shape: shape of a sample, in the model's units.
        device: where the model computes.
        trained: the samples that a training step of the model computes at a time; None if that is not known: `SMALL`
            numbers then on a CPU, and `LARGE` on an accelerator, which needs large batches to be busy.
        graphs: evaluations of the model through which is differentiated at a time.

    Raises:
        UsageError: for a number below 1.
    """
    if given is not None:
        require(given >= 1, f"batch_size={given}: need at least 1")
        return given
    dim = max(NARROWEST, math.prod(shape))
    if trained is None:
        numbers = SMALL if device.type == "cpu" else LARGE
    else:
        numbers = min(max(SMALL, FORWARD * trained * dim), LARGE)
    return max(1, numbers // (dim * max(1, GRAPH * graphs)))

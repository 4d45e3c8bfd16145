r"""A whole loop as one CUDA graph.

On a GPU a small network is waited for by its own kernels: each is launched by the host, and at small batches launching
takes longer than computing. The loop of a table asks the host nothing on the way, so all its kernels, the network's and
the noise's included, can be recorded once and replayed with one launch, batch after batch of one shape.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from samplers.table import Loop
from scoresde.errors import require
from scoresde.noise import Noise


@final
class GraphedLoop:
    """A `Loop` recorded on a first batch, and replayed for others of its size; they must have its seed.

    Args:
        loop: what is recorded, on a model on CUDA whose network takes the same kernels for every input.
        x_T, noise, cond: the first batch; it is run once to warm up and once to record, and still has to be drawn.

    Raises:
        UsageError: if the batch is not on CUDA.
    """

    def __init__(self, loop: Loop, x_T: Tensor, noise: Noise, cond: Tensor | None = None) -> None:
        require(x_T.is_cuda, f"cuda_graph=True: the model is on {x_T.device}; move it to cuda, or leave cuda_graph out")
        self._loop, self._seed = loop, noise.seed
        self._x_T, self._indices, self._cond = (
            x_T.clone(),
            noise.indices.clone(),
            None if cond is None else cond.clone(),
        )
        side = torch.cuda.Stream(x_T.device)
        side.wait_stream(torch.cuda.current_stream(x_T.device))
        with torch.cuda.stream(side):
            self._run()
        torch.cuda.current_stream(x_T.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._x = self._run()

    def _run(self) -> Tensor:
        return self._loop(self._x_T, Noise(self._seed, self._indices), self._cond)

    def __call__(self, x_T: Tensor, noise: Noise, cond: Tensor | None = None) -> Tensor:
        """The samples of another batch."""
        self._x_T.copy_(x_T)
        self._indices.copy_(noise.indices)
        if self._cond is not None and cond is not None:
            self._cond.copy_(cond)
        self._graph.replay()
        return self._x.clone()

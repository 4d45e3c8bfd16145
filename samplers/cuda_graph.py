r"""A whole loop as one CUDA graph.

For small networks, kernel launch dominates: the host launches each kernel, and at small batches that takes longer than
computing. The loop of a table asks the host nothing on the way, so all its kernels, the network's and the noise's
included, can be recorded once and replayed with one launch, for batch after batch of one shape.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from samplers.base import Prepared, PreparedTable, Samples
from samplers.table import Callback, Loop, Projection
from scoresde import condition
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.noise import Noise, NoiseSource


@final
class GraphedTable(Prepared):
    """A prepared table whose loops are recorded: one graph for each size of batch and seed."""

    def __init__(self, prepared: PreparedTable) -> None:
        self.prepared = prepared
        self.model = prepared.model
        self.grid = prepared.grid
        self._graphs: dict[tuple[int, int], _Graph] = {}

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        require(
            callback is None and project is None,
            "cuda_graph=True: a recorded loop calls no callback and no projection; leave them out",
        )
        if not isinstance(noise, Noise):
            raise UsageError(f"noise={type(noise).__name__}: a recorded loop needs Noise(seed, indices)")
        key = (len(x_T), noise.seed)
        if key not in self._graphs:
            self._graphs[key] = _Graph(self.prepared.loop(x_T), x_T, noise, cond)
        return Samples(self._graphs[key](x_T, noise, cond), self.prepared.nfe)


@final
class _Graph:
    """A loop recorded on a first batch, and replayed for others of its size and seed.

    Args:
        loop: what is recorded, on a model on CUDA whose network takes the same kernels for every input.
        x_T, noise, cond: the first batch; it is run once to warm up and once to record, and still has to be drawn.

    Raises:
        UsageError: if the batch is not on CUDA.
    """

    def __init__(self, loop: Loop, x_T: Tensor, noise: Noise, cond: Condition) -> None:
        require(x_T.is_cuda, f"cuda_graph=True: the model is on {x_T.device}; move it to cuda, or leave cuda_graph out")
        self._loop = loop
        self._seed = noise.seed
        self._x_T = x_T.clone()
        self._indices = noise.indices.clone()
        self._cond = condition.apply(torch.clone, cond)
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

    def __call__(self, x_T: Tensor, noise: Noise, cond: Condition) -> Tensor:
        """The samples of another batch."""
        self._x_T.copy_(x_T)
        self._indices.copy_(noise.indices)
        condition.apply(torch.Tensor.copy_, self._cond, cond)
        self._graph.replay()
        return self._x.clone()

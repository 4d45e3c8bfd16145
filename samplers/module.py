"""A whole sampler as one module, from noise to data, to be compiled or written for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from samplers.base import PreparedTable, Sampler
from samplers.sampling import prepare
from samplers.table import Loop
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel


@final
class SamplerModule(nn.Module):
    """A sampler on a model and a grid: standard normal z `(B, *shape)`, and a condition, to samples in raw units.

    Args:
        network_model: the model whose weights are the module's.
        sampler: a table that draws no noise on the way, such as `Heun()`, `UniPC()` or fitted tables.
        grid: its times; the sampler's default grid if None.
        num_steps: steps of the default grid.
        model: what gives the score, made from the model; the model itself if None.

    Raises:
        UsageError: for a sampler that draws noise or is not a table.

    Example:
        torch.export.export(SamplerModule(model, Heun(), num_steps=5), (torch.randn(2, *model.shape),))
    """

    def __init__(
        self,
        network_model: NetworkScoreModel,
        sampler: Sampler,
        grid: Tensor | None = None,
        num_steps: int | None = None,
        model: ScoreModel | None = None,
    ) -> None:
        super().__init__()
        self.network_model = network_model
        score_model = network_model if model is None else model
        prepared = prepare(score_model, sampler, grid, num_steps)
        require(
            isinstance(prepared, PreparedTable) and not (prepared.table.c.any() or prepared.table.d.any()),
            f"sampler={type(sampler).__name__}: draws noise on its way, or adapts its steps; a graph needs one that "
            "does neither, such as heun, unipc, dpm_solver, ddim or auto",
        )
        assert isinstance(prepared, PreparedTable)
        like = torch.zeros(2, *network_model.shape, device=network_model.device, dtype=network_model.dtype)
        self._scale = score_model.sde.sigma(prepared.grid[0]).item()
        self._loop = Loop(prepared.table, score_model, like)
        self.nfe = prepared.nfe

    def forward(self, z: Tensor, cond: Condition = None) -> Tensor:
        """The samples, in raw units, as floats."""
        return self.network_model.codec.decode(self._loop(self._scale * z, _Silent(), cond))


@final
class _Silent(NoiseSource):
    """The noise of a loop that draws none."""

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        raise UsageError("sampler: draws noise")

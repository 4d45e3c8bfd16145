r"""Replacement: what is measured is put into the state after each step (Song et al. 2021, appendix I.2).

In the eigenbasis of A'A a measurement is some coordinates of x_0 with noise of variance S / s^2 (`Coordinates`). After
a step to a level with alpha, sigma and noise level r, those with r^2 >= S / s^2 become

    alpha value + alpha sqrt(r^2 - S / s^2) eps,

so that their noise is that of the level, and the others stay. For a mask these are the known pixels, for grey images
the channels' mean, for blocks their means. Stochastic samplers get fresh noise at each level, deterministic ones the
same for all levels, which is the flow of a known value.

The unknown coordinates follow the model's own steps, so they learn of the known ones only by what the next steps make
of them. The samples are too little correlated with the measurement. `RePaint` takes every step many times, to and fro,
which helps; with many repeats the error vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.ancestral import Ancestral
from samplers.base import NoiseKind, Prepared, Sampler, Samples, TableSampler
from samplers.measured.base import Coordinates, check_spectrum, need_measured, need_noise
from samplers.table import Callback, Projection, Table, clean_table, concatenate, denoiser_table
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.inverse.base import PosteriorModel
from scoresde.noise import NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import Level, transition


@final
@dataclass(frozen=True)
class Replacement(Sampler):
    """Another sampler, with the measured part of the state replaced after each of its steps.

    Order 0. The model is a `MeasuredModel`, and the condition the measurement.

    Attributes:
        sampler: what steps are taken; any with projections.
    """

    sampler: Sampler = field(default_factory=Ancestral)

    @property
    def order(self) -> int:
        return 0

    @property
    def noise(self) -> NoiseKind:
        return self.sampler.noise

    def grid(self, model: ScoreModel, num_steps: int | None = None) -> Tensor:
        return self.sampler.grid(model, num_steps)

    def evaluated(self, model: ScoreModel, grid: Tensor) -> Level | None:
        return self.sampler.evaluated(model, grid)

    def prepare(self, model: ScoreModel, grid: Tensor) -> Prepared:
        model = need_measured(self, model)
        check_spectrum("Replacement", model)
        return _Replacing(self.sampler, model, grid)


@final
class _Replacing(Prepared):
    def __init__(self, sampler: Sampler, model: PosteriorModel, grid: Tensor) -> None:
        self.model: PosteriorModel = model
        self.grid = grid
        self._inner = sampler.prepare(model, grid)
        self._fresh = sampler.noise != "none"

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
    ) -> Samples:
        stream = need_noise(noise).stream("replacement")
        measured = Coordinates.of(self.model, self.model.split(cond)[0].to(x_T))

        def replaced(row: int, level: Level, x: Tensor) -> Tensor:
            coordinates = measured.basis.into(x)
            eps = measured.basis.into(stream.normal(row + 1 if self._fresh else 0, tuple(x.shape[1:]), x.dtype))
            left = level.noise_level.to(x) ** 2 - measured.variance
            put = level.alpha.to(x) * (measured.value + left.clamp(min=0).sqrt() * eps)
            x = measured.basis.out_of(torch.where(left >= 0, put, coordinates))
            return x if project is None else project(row, level, x)

        return self._inner(x_T, noise, cond, callback, replaced)


@final
@dataclass(frozen=True)
class RePaint(TableSampler):
    """Ancestral steps that are taken several times: down some levels, and up again by the forward process.

    For `Replacement`, of which it finds the unknown part (Lugmayr et al. 2022, algorithm 1). Order 0; a grid of n steps
    costs about n times `repeats` evaluations.

    Attributes:
        repeats: how often each stretch of the grid is gone down.
        jump: steps of a stretch.
    """

    repeats: int = 10
    jump: int = 10

    order = 0
    noise = "independent"
    min_steps = 1
    default_num_steps = 100

    def __post_init__(self) -> None:
        for name, value in {"repeats": self.repeats, "jump": self.jump}.items():
            require(value >= 1, f"{name}={value}: need at least 1")

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.uniform_log_snr(model.sde, num_steps)

    def table(self, model: ScoreModel, grid: Tensor) -> Table:
        """A step that is followed by one upwards is a single row with the noise of both."""
        level, to_clean = self.noisy_levels(model, grid)
        start = []
        turn = []
        for first in range(0, len(level) - 1, self.jump):
            last = min(first + self.jump, len(level) - 1)
            start += list(range(first, last)) * self.repeats
            turn += ([-1] * (last - first - 1) + [first]) * (self.repeats - 1) + [-1] * (last - first)
        tables = []
        if start:
            at = torch.tensor(start)
            down = Ancestral().steps(model, level[at], level[at + 1])
            back = torch.where(torch.tensor(turn) < 0, at + 1, torch.tensor(turn))
            ratio, std = transition(level[at + 1], level[back])
            ratio = torch.where(back == at + 1, 1, ratio)
            std = torch.where(back == at + 1, 0, std)
            c = torch.sqrt((ratio * down.c) ** 2 + std**2)
            tables.append(denoiser_table(level[at], level[back], ratio * down.a, ratio * down.b[:, 0], c))
        if to_clean:
            tables.append(clean_table(level[-1:]))
        return concatenate(tables)

r"""A pilot run: a few samples followed along the probability flow with many evaluations, and all that was seen kept.

The dense nodes are even in asinh(noise level / width): in the logarithm of the noise level above the width, a small
part of the data's scale, and in the noise level itself below. There the flows of all networks that were tried converge
with 136 evaluations to one part in ten thousand of the data's scale, also where errors of the network make F rough
at large noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from samplers import grids
from samplers.integrands import VelocityIntegrand, level_at
from samplers.multistep import Scheme, multistep_table
from samplers.quadrature import Phi
from samplers.sampling import prior
from samplers.table import Loop, Table, concatenate, denoiser_table
from samplers.trigonometric import Trigonometric
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

NUM_SAMPLES = 32
ENTRIES = 4096  # of all samples, that are kept
COARSE, DENSE = 12, 136  # evaluations of the two runs


@final
@dataclass(frozen=True)
class Coupling:
    """Where the converged probability flow leads: `start` and `end` `(B, *shape)`, and the conditions `(B, ...)`."""

    start: Tensor
    end: Tensor
    cond: Tensor | None

    def part(self, index: slice | Tensor) -> Coupling:
        """Some of the samples."""
        return Coupling(self.start[index], self.end[index], None if self.cond is None else self.cond[index])

    def start_of(self, table: Table, sde: SDE) -> Tensor:
        """The same noises as samples of the prior where a table starts, which may be below t_max."""
        return self.start * (table.level.sigma[0] / sde.sigma(torch.tensor(sde.t_max, dtype=torch.float64))).item()


@final
@dataclass(frozen=True)
class PilotRun:
    """What a dense run along the probability flow saw.

    Attributes:
        truth: where it began and ended.
        noise_level: `(M,)`, falling.
        u, denoised: `(M, N)` x / alpha and the denoiser's output at each level, some entries of all samples, float64.
        noise: `(N,)` the same entries of the noise that it began from.
        scale: standard deviation of the ends.
        spread: geometric mean of its entries' deviation and that along its first principal direction; where samples are
            far apart as wholes, what they become is decided at larger noise than `scale`.
    """

    truth: Coupling
    noise_level: Tensor
    u: Tensor
    denoised: Tensor
    noise: Tensor
    scale: float

    @property
    def softening(self) -> float:
        """Below this noise level the dense nodes are even in the noise level, above in its logarithm."""
        return _softening(self.scale)

    @cached_property
    def spread(self) -> float:
        centred = self.truth.end.double().flatten(1)
        centred = centred - centred.mean(0)
        along_first = torch.linalg.matrix_norm(centred, 2) / max(1, len(centred) - 1) ** 0.5
        return (centred.std(0).mean() * along_first).sqrt().item()

    @cached_property
    def _spline(self) -> Callable[[Any], Any]:
        from scipy.interpolate import CubicSpline

        known = torch.asinh(self.noise_level / self.softening).flip(0).numpy()
        return CubicSpline(known, torch.cat([self.u, self.denoised], 1).flip(0).numpy())

    def at(self, noise_level: Tensor) -> tuple[Tensor, Tensor]:
        """u and D at noise levels `(n,)` by cubic splines, `(n, N)`."""
        wanted = torch.asinh(noise_level / self.softening).numpy()
        u, denoised = torch.from_numpy(self._spline(wanted)).chunk(2, 1)
        return u, denoised


def _softening(scale: float) -> float:
    return 0.02 * scale


@torch.no_grad()
def pilot_run(
    model: ScoreModel,
    cond: Tensor | None = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> PilotRun:
    """Follows samples along the probability flow: a coarse run for the data's scale, and a dense one.

    Args:
        model, cond: what is run, with one condition a sample or None.
        num_samples, seed: how many samples, of which noise.
        tell: called after each evaluation.
    """
    x_T, cond = noise_of(model, num_samples, seed), None if cond is None else cond.to(model.like().device)
    noise = Noise(seed, torch.arange(num_samples))  # nothing is drawn
    coarse = Trigonometric()
    rows: list[tuple[Tensor, Tensor]] = []

    def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        tell()
        rows.append((x_t / level.alpha, x0_hat))

    with model.eval_mode():
        first = coarse.table(model.sde, coarse.default_grid(model.sde, COARSE))
        scale = Loop(first, model, x_T)(x_T, noise, cond, watch).std().item()
        require(0 < scale < math.inf, f"model: its samples have a standard deviation of {scale}; has it been trained?")
        rows.clear()
        table = dense_table(model.sde, scale)
        end = Loop(table, model, x_T)(x_T, noise, cond, watch)
    u, denoised = (torch.stack([kept(row[i]) for row in rows]) for i in (0, 1))
    level = table.level
    return PilotRun(Coupling(x_T, end, cond), level.noise_level, u, denoised, kept(x_T) / level.sigma[0], scale)


def kept(x: Tensor) -> Tensor:
    """The entries of all samples `(B, *shape)` that a pilot run keeps, `(N,)` in float64 on the host."""
    return x.flatten()[:: max(1, x.numel() // ENTRIES)].to("cpu", torch.float64)


@torch.no_grad()
def reference_coupling(
    model: ScoreModel,
    scale: float,
    cond: Tensor | None = None,
    num_samples: int = 100,
    seed: int = 1,
    num_evaluations: int = DENSE,
    batch_size: int = 64,
    tell: Callable[[], None] = lambda: None,
) -> Coupling:
    """The ends of the probability flow from some noises, as good as `num_evaluations` reach.

    Args:
        model, scale, cond: what is run, on data of a scale (`PilotRun.scale`), with one condition a sample or None.
        num_samples, seed: how many samples, of which noise.
        num_evaluations, batch_size: of each batch.
        tell: called after each evaluation of a batch.
    """
    x_T, cond = noise_of(model, num_samples, seed), None if cond is None else cond.to(model.like().device)
    loop = Loop(dense_table(model.sde, scale, num_evaluations), model, x_T[:1])
    noise, ends = Noise(seed, torch.arange(num_samples)), []
    with model.eval_mode():
        for first in range(0, num_samples, batch_size):
            part = slice(first, first + batch_size)
            ends.append(loop(x_T[part], noise, None if cond is None else cond[part], lambda *_: tell()))
    return Coupling(x_T, torch.cat(ends), cond)


def noise_of(model: ScoreModel, num_samples: int, seed: int) -> Tensor:
    """Samples of the prior at t_max, of a seed."""
    like = model.like()
    noise = Noise(seed, torch.arange(num_samples, device=like.device))
    return prior(model, grids.uniform_log_snr(model.sde, 2), noise, like.dtype)


def dense_table(sde: SDE, scale: float, num_evaluations: int = DENSE) -> Table:
    """The table of a dense run, for data of a scale; its last row is the denoiser."""
    width = _softening(scale)
    ends = sde.noise_level(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64))
    first, last = torch.asinh(ends / width)
    u = torch.linspace(0, 1, num_evaluations, dtype=torch.float64)
    level = level_at(sde, width * torch.sinh(first + u * (last - first)))
    scheme = Scheme(VelocityIntegrand(scale), Phi(scale), 3, True)
    inner = multistep_table(scheme, level.at(slice(None, -1)), level.at(slice(1, None)))
    zero = torch.zeros(1, dtype=torch.float64)
    return concatenate([inner, denoiser_table(level.at(slice(-1, None)), zero, zero + 1, zero)])


def trimmed_error(x: Tensor, end: Tensor, share: float = 0.97) -> float:
    """RMS over entries and a share of the samples: the worst ones are left to flips of a basin."""
    squares = (x - end).double().flatten(1).square().mean(1).sort().values
    return squares[: max(1, round(share * len(squares)))].mean().sqrt().item()

r"""A pilot run: a few samples followed along the probability flow with many evaluations, and all that was seen kept.

The dense nodes are even in asinh(noise level / width): in the logarithm of the noise level above the width, a small
part of the data's scale, and in the noise level itself below. There the flows of all networks that were tried converge
with 140 evaluations to one part in ten thousand of the data's scale, also where errors of the network make F rough
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
from samplers.generate import prior
from samplers.multistep import Scheme, multistep_table
from samplers.noise import Noise
from samplers.quadrature import Phi
from samplers.table import Loop, Table, concatenate, denoiser_table
from samplers.trigonometric import Trigonometric
from samplers.views import VelocityView, level_at
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

ENTRIES = 4096  # of all samples, that are kept
COARSE, DENSE = 12, 140  # evaluations of the two runs


@final
@dataclass(frozen=True)
class PilotRun:
    """What a dense run along the probability flow saw.

    Attributes:
        start, cond, end: `(B, *shape)` where it began, its conditions, and where it ended.
        noise_level: `(M,)`, falling.
        u, denoised: `(M, N)` x / alpha and the denoiser's output at each level, some entries of all samples, float64.
        scale: standard deviation of `end`.
    """

    start: Tensor
    cond: Tensor | None
    end: Tensor
    noise_level: Tensor
    u: Tensor
    denoised: Tensor
    scale: float

    @cached_property
    def _spline(self) -> Callable[[Any], Any]:
        from scipy.interpolate import CubicSpline

        known = torch.asinh(self.noise_level / _softening(self.scale)).flip(0).numpy()
        return CubicSpline(known, torch.cat([self.u, self.denoised], 1).flip(0).numpy())

    def at(self, noise_level: Tensor) -> tuple[Tensor, Tensor]:
        """u and D at noise levels `(n,)` by cubic splines, `(n, N)`."""
        wanted = torch.asinh(noise_level / _softening(self.scale)).numpy()
        u, denoised = torch.from_numpy(self._spline(wanted)).chunk(2, 1)
        return u, denoised


def _softening(scale: float) -> float:
    """Below this noise level dense nodes are even in the noise level, above in its logarithm."""
    return 0.02 * scale


@torch.no_grad()
def pilot_run(
    model: ScoreModel,
    cond: Tensor | None = None,
    num_samples: int = 32,
    seed: int = 0,
    dense: int = DENSE,
    tell: Callable[[], None] = lambda: None,
) -> PilotRun:
    """Follows samples along the probability flow: a coarse run for the data's scale, and a dense one.

    Args:
        model, cond: what is run, with one condition a sample or None.
        num_samples, seed: how many samples, of which noise.
        dense: evaluations of the dense run.
        tell: called after each evaluation.
    """
    like = model.like()
    noise = Noise(seed, torch.arange(num_samples, device=like.device))
    cond = None if cond is None else cond.to(like.device)
    x_T = prior(model, grids.uniform_log_snr(model.sde, 2), noise, like.dtype)
    coarse = Trigonometric()
    rows: list[tuple[Tensor, Tensor]] = []

    def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        tell()
        rows.append((x_t / level.alpha, x0_hat))

    with model.evaluating():
        first = coarse.table(model.sde, coarse.default_grid(model.sde, COARSE))
        scale = Loop(first, model, x_T)(x_T, noise, cond, watch).std().item()
        require(0 < scale < math.inf, f"model: its samples have a standard deviation of {scale}; has it been trained?")
        rows.clear()
        level = level_at(model.sde, _asinh_nodes(model.sde, dense, _softening(scale)))
        view = VelocityView(scale)
        inner = multistep_table(Scheme(view, Phi(scale), 3, True), level.at(slice(None, -1)), level.at(slice(1, None)))
        end = Loop(concatenate([inner, _last_row(level)]), model, x_T)(x_T, noise, cond, watch)
    every = max(1, end.numel() // ENTRIES)
    u, denoised = (
        torch.stack([parts[i].flatten()[::every] for parts in rows]).to("cpu", torch.float64) for i in (0, 1)
    )
    return PilotRun(x_T, cond, end, level.noise_level, u, denoised, scale)


def _last_row(level: Level) -> Table:
    """The denoiser at the last of some levels."""
    last = level.at(slice(-1, None))
    zero = torch.zeros_like(last.t)
    return denoiser_table(last, zero, torch.ones_like(zero), zero)


def _asinh_nodes(sde: SDE, num_steps: int, width: float) -> Tensor:
    """Noise levels from t_max to t_min, even in asinh(noise level / width)."""
    first, last = torch.asinh(sde.noise_level(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)) / width)
    return width * torch.sinh(first + torch.linspace(0, 1, num_steps, dtype=torch.float64) * (last - first))

r"""The weight of guidance as a function of the noise level r = sigma / alpha.

A weight belongs to a noise level, not to a share of the steps: so it means the same on every grid. Two rules of the
field are weights that belong to the steps of one grid. As functions of r they are made for that grid:

- CFG++ (Chung et al. 2025) takes the noise of DDIM's step from the unconditional estimate. In the row from t to s the
  denoiser has the factor c = alpha_s - alpha_t sigma_s / sigma_t, and with the unconditional noise the step is that of
  ordinary guidance with the weight w = strength alpha_s / c. As the steps shrink w grows without bound: CFG++
  discretises no differential equation, and its strength depends on the number of steps.
- The mean form of classifier guidance (Dhariwal and Nichol 2021, algorithm 1) shifts the mean of DDPM's step by
  gamma Sigma g, g the classifier's gradient. The score form shifts it by gamma (sigma_ts^2 / alpha_ts) g. So the mean
  form is the score form with gamma times alpha_ts sigma_s^2 / sigma_t^2 for the posterior variance, and alpha_ts for
  "beta".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from scoresde.errors import UsageError, require
from scoresde.sde import SDE, Level

Weight = float | Callable[[Tensor], Tensor]
"""A number, or a function of the noise level."""


@final
@dataclass(frozen=True)
class Schedule:
    """A weight, inside an interval of noise levels.

    Attributes:
        weight: a number, or a function of the noise level; not negative.
        interval: (low, high): the weight holds for low < r <= high; None for every r.
        outside: the weight elsewhere.
    """

    weight: Weight
    interval: tuple[float, float] | None
    outside: float

    def __post_init__(self) -> None:
        if not callable(self.weight):
            require(
                isinstance(self.weight, int | float) and 0 <= self.weight < math.inf,
                f"scale={self.weight!r}: need a number that is not negative, or a function of the noise level",
            )
        if self.interval is not None:
            low, high = self.interval
            require(0 <= low < high, f"interval=({low:g}, {high:g}): need noise levels with 0 <= low < high")

    def check_range(self, sde: SDE) -> None:
        """Raises `UsageError` for an interval without a noise level of the SDE."""
        if self.interval is None:
            return
        largest, smallest = sde.span().noise_level.tolist()
        low, high = self.interval
        require(
            low < largest and high > smallest,
            f"interval=({low:g}, {high:g}): outside the noise levels of {type(sde).__name__}, {smallest:.3g} to "
            f"{largest:.3g}",
        )

    def is_all(self, weights: Tensor, value: float) -> bool:
        """Whether the weights that `at` gave all have a value; of a constant one, without waiting for a device."""
        if self.interval is None and not callable(self.weight):
            return self.weight == value
        return bool((weights == value).all())

    def at(self, noise_level: Tensor) -> Tensor:
        """The weights at noise levels, in their shape and type."""
        if callable(self.weight):
            weight = torch.as_tensor(self.weight(noise_level)).to(noise_level).expand_as(noise_level)
            bad = ~(weight.isfinite() & (weight >= 0))
            if bool(bad.any()):
                raise UsageError(
                    f"scale: its function gives {weight[bad].flatten()[0].item():g} at a noise level of "
                    f"{noise_level[bad].flatten()[0].item():g}; need finite weights that are not negative"
                )
        else:
            weight = torch.full_like(noise_level, self.weight)
        if self.interval is None:
            return weight
        low, high = self.interval
        return torch.where((noise_level > low) & (noise_level <= high), weight, self.outside)


def cfg_plus_plus(strength: float, sde: SDE, grid: Tensor) -> Callable[[Tensor], Tensor]:
    """The weight that makes guidance CFG++ on DDIM's steps along a grid (Chung et al. 2025).

    Args:
        strength: lambda of the paper, in [0, 1].
        sde, grid: the steps; the weight belongs to them.
    """
    require(0 <= strength < math.inf, f"strength={strength}: must not be negative, and finite")
    level, end = _steps(sde, grid)
    on_denoiser = end.alpha - level.alpha * end.sigma / level.sigma
    return _of_steps(level, strength * end.alpha / on_denoiser)


def mean_form(
    scale: float, sde: SDE, grid: Tensor, variance: Literal["posterior", "beta"] = "posterior"
) -> Callable[[Tensor], Tensor]:
    """The scale that makes classifier guidance the published mean + scale Sigma grad log p(y | x_t).

    Args:
        scale: gamma of the paper.
        sde, grid: DDPM's steps, along which `Ancestral` goes; the scale belongs to them.
        variance: Sigma of the steps, as in `Ancestral`.
    """
    level, end = _steps(sde, grid)
    alpha_ts = level.alpha / end.alpha
    share = alpha_ts * (end.sigma / level.sigma) ** 2 if variance == "posterior" else alpha_ts
    return _of_steps(level, scale * torch.where(end.sigma == 0, 0, share))  # the step to clean data has no variance


def _steps(sde: SDE, grid: Tensor) -> tuple[Level, Level]:
    """The levels at which the steps along a grid begin and end; the last may end with clean data."""
    grid = grid.double()
    level = sde.level(grid[grid > 0])
    if grid[-1] == 0:
        return level, Level.join(torch.cat, [level[1:], Level.clean()])
    return level[:-1], level[1:]


def _of_steps(level: Level, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The weight of the step that begins at the nearest noise level, by ratio."""
    known = torch.log(level.noise_level)

    def weight(noise_level: Tensor) -> Tensor:
        nearest = (torch.log(noise_level.double()).unsqueeze(-1) - known.to(noise_level.device)).abs().argmin(-1)
        return weights.to(noise_level.device)[nearest]

    return weight

r"""How two estimates of x_0 become a guided one.

The linear rule, D_ref + w (D - D_ref), is guidance itself: the same in every view, because D, noise, score and velocity
are affine in one another. The others change it where a large w burns images out. They are not the same in every view,
and are defined on D here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

Combine = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""The guided estimate `(B, *)` of D, D_ref `(B, *)` and w, a number or `(B, 1, ...)`."""


class Rule(ABC):
    """A rule that combines two estimates of x_0.

    Attributes:
        linear: whether it is D_ref + w (D - D_ref).
        remembers: whether it depends on the evaluation before; samplers then need one evaluation a step.
    """

    linear: bool = False

    @property
    @abstractmethod
    def remembers(self) -> bool: ...

    @abstractmethod
    def start(self) -> Combine:
        """The function for one run; what it remembers begins anew."""


@final
@dataclass(frozen=True)
class Linear(Rule):
    """D_ref + w (D - D_ref) (Ho and Salimans 2022)."""

    linear = True
    remembers = False

    def start(self) -> Combine:
        return linear


def linear(x0_hat: Tensor, reference: Tensor, w: Tensor | float) -> Tensor:
    """D_ref + w (D - D_ref)."""
    return torch.lerp(reference, x0_hat, w)


@final
@dataclass(frozen=True)
class Rescale(Rule):
    """The linear rule, its deviation within a sample brought back to that of D (Lin et al. 2024, section 3.4).

    D_w (mix std(D) / std(D_w) + 1 - mix), std over all entries of a sample. The paper rescales the network's output.

    Attributes:
        mix: 0 is the linear rule; the paper takes 0.7.
    """

    mix: float = 0.7

    remembers = False

    def __post_init__(self) -> None:
        require(0 <= self.mix <= 1, f"mix={self.mix} of Rescale: need 0 <= mix <= 1")

    def start(self) -> Combine:
        return self._combine

    def _combine(self, x0_hat: Tensor, reference: Tensor, w: Tensor | float) -> Tensor:
        guided = linear(x0_hat, reference, w)
        entries = tuple(range(1, guided.ndim))
        ratio = x0_hat.std(entries, keepdim=True) / guided.std(entries, keepdim=True).clamp(min=1e-12)
        return guided * (self.mix * ratio + 1 - self.mix)


@final
@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2025): D + (w - 1) times a tamed difference of D and D_ref.

    The difference is averaged with its predecessors (momentum), shortened to `radius`, and its part along D, which
    saturates colours, is multiplied by `eta`.

    Attributes:
        eta: factor of the part of the difference along D; 1 keeps it.
        radius: largest norm of the difference.
        momentum: factor of the differences before, in the running sum; the paper takes -0.75 to 0. It needs a sampler
            with one evaluation a step.
    """

    eta: float = 0.0
    radius: float = math.inf
    momentum: float = 0.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.eta), f"eta={self.eta} of APG: must be finite")
        require(self.radius > 0, f"radius={self.radius} of APG: must be positive")
        require(-1 < self.momentum < 1, f"momentum={self.momentum} of APG: need -1 < momentum < 1")

    @property
    def remembers(self) -> bool:
        return self.momentum != 0

    def start(self) -> Combine:
        before: Tensor | None = None

        def combine(x0_hat: Tensor, reference: Tensor, w: Tensor | float) -> Tensor:
            nonlocal before
            difference = x0_hat - reference
            if self.momentum:
                difference = difference if before is None else difference + self.momentum * before
                before = difference
            return x0_hat + (w - 1) * self._tamed(difference, x0_hat)

        return combine

    def _tamed(self, difference: Tensor, x0_hat: Tensor) -> Tensor:
        entries = tuple(range(1, difference.ndim))
        if math.isfinite(self.radius):
            norm = torch.linalg.vector_norm(difference, dim=entries, keepdim=True)
            difference = difference * (self.radius / norm.clamp(min=1e-12)).clamp(max=1)
        squares = x0_hat.square().sum(entries, keepdim=True).clamp(min=1e-12)
        along = (difference * x0_hat).sum(entries, keepdim=True) / squares * x0_hat
        return difference + (self.eta - 1) * along

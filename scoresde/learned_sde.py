r"""An SDE whose schedule is learned (Kingma et al. 2021, arXiv:2107.00630, sections 3.2 and 5.3, appendices H and I.2).

With gamma = -log_snr a variance-preserving path is

    alpha^2 = sigmoid(-gamma),  sigma^2 = sigmoid(gamma),  f = -1/2 sigmoid(gamma) gamma',  g^2 = sigmoid(gamma) gamma',

and gamma(t) = gamma_min + (gamma_max - gamma_min) shape(t) with a monotone shape from 0 at t_min to 1 at t_max. Of the
continuous-time variational bound (`scoresde.bounds`) only the two ends of gamma change the value: the shape merely says
how often each noise level is visited by times that are drawn uniformly, and so how much the estimate of the bound
varies. Hence two kinds of weights with two losses:

    the ends     minimise the bound itself, with the network;
    the shape    minimises the variance of its estimate. The mean of the diffusion loss L_i of a sample does not depend
                 on the shape, so this is to minimise E L_i^2, whose gradient is that of L_i times 2 L_i. It is taken
                 in units of gamma_max - gamma_min, about twice the mean of L_i, so that it has the size of the others
                 where all are clipped together.

Both come out of one backward pass: within `shape_gradient` what the shape gives at the time of each sample carries a
hook that multiplies the gradient which arrives there by 2 L_i, and what goes on to the ends and the network is left
as it is. (Of an SDE an objective asks alpha, sigma and g only, which cannot tell ends and shape apart. The context
says it without another method of every SDE: those that have no shape never look at it.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.sde import SDE, check_times

MAX_KNOTS = 2**16

_losses: ContextVar[list[Tensor] | None] = ContextVar("losses", default=None)


@contextlib.contextmanager
def shape_gradient() -> Iterator[list[Tensor]]:
    """While entered, shapes that are evaluated at `(B,)` times will be trained on L_i^2 / width instead of L_i.

    Gives an empty list; append L `(B,)`, detached, before the backward pass. The width is gamma_max - gamma_min.
    """
    losses: list[Tensor] = []
    token = _losses.set(losses)
    try:
        yield losses
    finally:
        _losses.reset(token)


@final
class LearnedVPSDE(SDE, nn.Module):
    """Variance preserving, gamma(t) = -log_snr(t) learned: two ends, and between them a piecewise linear shape.

    The shape's rises over `num_knots` equal segments of [t_min, t_max] are softmax(weights): it is monotone whatever
    the weights, and `time` is a closed form. (Kingma et al. take a monotone network, whose inverse is not.) At first it
    is straight. A part of the model that holds it, its weights are trained, averaged and saved with the network's.

    Args:
        gamma_min, gamma_max: -log_snr at t_min and t_max before training.
        num_knots: segments of the shape.
        t_min, t_max, t_end: as of every `SDE`.
    """

    def __init__(
        self,
        gamma_min: float = -13.3,  # Kingma et al. 2021, their code's configuration of CIFAR-10
        gamma_max: float = 5.0,
        num_knots: int = 64,
        t_min: float = 1e-5,
        t_max: float = 1.0,
        t_end: float = 1e-5,
    ) -> None:
        super().__init__()
        require(
            -math.inf < gamma_min < gamma_max < math.inf,
            f"gamma_min={gamma_min}, gamma_max={gamma_max}: need gamma_min < gamma_max, finite",
        )
        require(1 <= num_knots <= MAX_KNOTS, f"num_knots={num_knots}: need 1 to {MAX_KNOTS}")
        self.t_min, self.t_max, self.t_end = t_min, t_max, t_end
        check_times(self)
        self._whole = {"gamma_min": gamma_min, "gamma_max": gamma_max, "num_knots": num_knots}
        self._whole |= {"t_min": t_min, "t_max": t_max, "t_end": self.t_end}
        # all weights begin at zero: what decay they are given pulls towards the schedule of the arguments
        self.ends = nn.Parameter(torch.zeros(2))  # added to gamma_min, and to what softplus makes the width of
        self.weights = nn.Parameter(torch.zeros(num_knots))

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was made of.

        Raises:
            UsageError: for one that `within` has cut, which no arguments give.
        """
        require(
            (self.t_min, self.t_max) == (self._whole["t_min"], self._whole["t_max"]),
            f"sde: a part of a LearnedVPSDE, over [{self.t_min}, {self.t_max}], cannot be described; save the whole",
        )
        return dict(self._whole)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * F.logsigmoid(-self._gamma(t)[0]))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * F.logsigmoid(self._gamma(t)[0]))

    def drift_coef(self, t: Tensor) -> Tensor:
        gamma, slope = self._gamma(t)
        return -0.5 * torch.sigmoid(gamma) * slope

    def diffusion(self, t: Tensor) -> Tensor:
        gamma, slope = self._gamma(t)
        return torch.sqrt(torch.sigmoid(gamma) * slope)

    def time(self, log_snr: Tensor) -> Tensor:
        low, width, knots, rises = (part.to(log_snr) for part in self._tables())
        share = (-log_snr - low) / width
        left = (torch.searchsorted(knots, share.detach().contiguous()) - 1).clamp(0, len(rises) - 1)
        return self._whole["t_min"] + (left + (share - knots[left]) / rises[left]) / self._segments_a_time

    @property
    def _segments_a_time(self) -> float:
        return self._whole["num_knots"] / (self._whole["t_max"] - self._whole["t_min"])

    def _tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma_min, gamma_max - gamma_min, the shape at the knots `(num_knots + 1,)` and its rise after each but the
        last, float64 on the device of the weights."""
        low, width = self._whole["gamma_min"], self._whole["gamma_max"] - self._whole["gamma_min"]
        before = width + math.log(-math.expm1(-width))  # softplus of it is the width
        ends, rises = self.ends.double(), self.weights.double().softmax(0)
        return low + ends[0], F.softplus(before + ends[1]), F.pad(rises.cumsum(0), (1, 0)), rises

    def _gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and its slope, on the device and in the type of t."""
        low, width, knots, rises = (part.to(t) for part in self._tables())
        position = (t - self._whole["t_min"]) * self._segments_a_time
        left = position.floor().long().clamp(0, len(rises) - 1)
        shape, slope = knots[left] + (position - left) * rises[left], self._segments_a_time * rises[left]
        losses = _losses.get()
        if losses is not None and self.weights.requires_grad and torch.is_grad_enabled():
            unit = width.detach()
            for part in (shape, slope):
                part.register_hook(lambda gradient: 2 * losses[0] / unit * gradient)
        return low + width * shape, width * slope

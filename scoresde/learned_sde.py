r"""An SDE whose schedule is learned (Kingma et al. 2021, arXiv:2107.00630, sections 3.2 and 5.3, appendices H and I.2).

With gamma = -log_snr, a variance-preserving path is

    alpha^2 = sigmoid(-gamma),  sigma^2 = sigmoid(gamma),  f = -1/2 sigmoid(gamma) gamma',  g^2 = sigmoid(gamma) gamma',

and gamma(t) = gamma_min + (gamma_max - gamma_min) shape(t), where shape rises from 0 to 1. The value of the
continuous-time variational bound (`scoresde.bounds`) depends on the two ends of gamma alone (section 5.1). The shape
decides how often training visits each noise level, and so only how much the estimate of the bound varies.

The ends and the shape therefore have different losses, and one backward pass trains both:

    1. The ends minimise the bound itself, together with the network.
    2. The shape minimises the variance of the bound's estimate. The mean of a sample's diffusion loss L_i does not
       depend on the shape, so this is the same as minimising E L_i^2, whose gradient is 2 L_i times that of L_i.
    3. While `shape_gradient` is entered, the shape's value and slope at each sample's time get a hook, which multiplies
       their gradient by 2 L_i / (gamma_max - gamma_min). The mean of L_i is at most about half the width, so this
       gradient is not larger than the others, and all are clipped together.
    4. The gradients of the ends and the network are unchanged.

An objective reads only alpha, sigma and g of an SDE, and cannot tell the ends from the shape. The context variable
carries the losses to the hook without adding a method to every SDE.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.sde import SDE, set_times

MAX_SEGMENTS = 2**16

_losses: ContextVar[list[Tensor] | None] = ContextVar("losses", default=None)


@contextlib.contextmanager
def shape_gradient() -> Iterator[list[Tensor]]:
    """While entered, a shape evaluated at times `(B,)` is trained on L_i^2 / (gamma_max - gamma_min) instead of L_i.

    Yields an empty list. Append L `(B,)`, detached, before the backward pass.
    """
    losses: list[Tensor] = []
    token = _losses.set(losses)
    try:
        yield losses
    finally:
        _losses.reset(token)


@final
class LearnedVPSDE(SDE, nn.Module):
    """Variance preserving, with a learned gamma(t) = -log_snr(t): two ends, and a piecewise linear shape between them.

    The shape rises by softmax(weights) over `num_segments` equal segments of `support`. It is monotone for all weights,
    and its inverse, `time`, has a closed form; the inverse of Kingma et al.'s monotone network has none. It starts as
    a straight line. The SDE is a submodule of the model, so its weights are trained, averaged and saved with the
    network's.

    Args:
        gamma_min, gamma_max: -log_snr at the two ends of `support`, before training.
        num_segments: number of segments of the shape.
        support: the times at which gamma is gamma_min and gamma_max; (t_min, t_max) if None.
        t_min, t_max, t_end: as in every `SDE`; they lie within the support.
    """

    def __init__(
        self,
        gamma_min: float = -13.3,  # Kingma et al. 2021, their code's configuration of CIFAR-10
        gamma_max: float = 5.0,
        num_segments: int = 64,
        support: tuple[float, float] | None = None,
        t_min: float = 1e-5,
        t_max: float = 1.0,
        t_end: float = 1e-5,
    ) -> None:
        super().__init__()
        require(
            -math.inf < gamma_min < gamma_max < math.inf,
            f"gamma_min={gamma_min}, gamma_max={gamma_max}: need gamma_min < gamma_max, finite",
        )
        require(1 <= num_segments <= MAX_SEGMENTS, f"num_segments={num_segments}: need 1 to {MAX_SEGMENTS}")
        set_times(self, t_min, t_max, t_end)
        first, last = (t_min, t_max) if support is None else support
        require(
            first <= t_min and t_max <= last,
            f"support={support}: need the times from t_min={t_min} to t_max={t_max} within it",
        )
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max
        self.num_segments = num_segments
        self.support = (first, last)
        # all weights start at zero, so that weight decay pulls towards the schedule of the arguments
        self.ends = nn.Parameter(torch.zeros(2))  # added to gamma_min, and to the inverse softplus of the width
        self.weights = nn.Parameter(torch.zeros(num_segments))

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
        return self.support[0] + (left + (share - knots[left]) / rises[left]) / self._segments_per_time

    @property
    def _segments_per_time(self) -> float:
        return self.num_segments / (self.support[1] - self.support[0])

    def _tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma_min, gamma_max - gamma_min, the shape at its knots and its rise over each segment.

        Shapes `()`, `()`, `(num_segments + 1,)`, `(num_segments,)`; float64, on the device of the weights.
        """
        initial_width = self.gamma_max - self.gamma_min
        before_softplus = initial_width + math.log(-math.expm1(-initial_width))  # softplus of this is the width
        ends = self.ends.double()
        rises = self.weights.double().softmax(0)
        knots = F.pad(rises.cumsum(0), (1, 0))
        return self.gamma_min + ends[0], F.softplus(before_softplus + ends[1]), knots, rises

    def _gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and its slope, on the device and in the type of t."""
        low, width, knots, rises = (part.to(t) for part in self._tables())
        position = (t - self.support[0]) * self._segments_per_time
        left = position.floor().long().clamp(0, len(rises) - 1)
        shape = knots[left] + (position - left) * rises[left]
        slope = self._segments_per_time * rises[left]
        losses = _losses.get()
        if losses is not None and self.weights.requires_grad and torch.is_grad_enabled():
            unit = width.detach()
            for part in (shape, slope):
                part.register_hook(lambda gradient: 2 * losses[0] / unit * gradient)
        return low + width * shape, width * slope

r"""Models that know how wrong their own samplers are.

A guided score belongs to a target pi at each level, but a sampler that follows it does not draw from pi: what it draws
has to be weighed. `samplers.particles` carries weights along, by one of two accounts.

1. A rate. With u = x / alpha and s_i the scores of p_i, let pi = prod_i p_i^{w_i} at every level, and let s be
   sum_i w_i s_i. The density of u obeys the heat equation in r^2. Along du = s dv + dB, dv = -d(r^2), the weights obey

       d log W = (|s|^2 - sum_i w_i |s_i|^2) / 2 dv

   (Skreta et al. 2025, the Feynman-Kac corrector). In denoisers, s_i = (D_i - u) / r^2, and dv / r^4 = d snr.
2. A value. If pi = p exp(f) at every level, for any f, a step drawn from the guided kernel q instead of the model's own
   kernel p has the weight p(x_s | x_t) / q(x_s | x_t) exp(f(x_s) - f(x_t)) (Wu et al. 2023, twisted diffusion).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.condition import Condition
from scoresde.score_model import WrappedModel
from scoresde.sde import Level


class Weighed(NamedTuple):
    """What a model gives at a state.

    Attributes:
        x0_hat: `(B, *shape)` the guided estimate.
        rate: `(B,)` d log W / d snr, float64; None if the weights come from values.
        own: `(B, *shape)` the estimate without guidance, and `value`: `(B,)` f, float64; None if there is a rate.
    """

    x0_hat: Tensor
    rate: Tensor | None = None
    own: Tensor | None = None
    value: Tensor | None = None

    def take(self, index: Tensor) -> Weighed:
        """Of some states."""
        x0_hat, *rest = self
        return Weighed(x0_hat[index], *(None if part is None else part[index] for part in rest))

    @classmethod
    def join(cls, parts: Sequence[Weighed]) -> Weighed:
        """Those of several batches as of one."""
        x0_hat, *rest = ([part for part in column if part is not None] for column in zip(*parts, strict=True))
        return cls(torch.cat(x0_hat), *(torch.cat(column) if column else None for column in rest))


class WeighedModel(WrappedModel):
    """A guided model that gives the weights of its samples.

    Attributes:
        total_weight: sum_i w_i. At t_max pi is N(0, sigma^2 / total_weight I).
    """

    total_weight: float = 1.0

    @abstractmethod
    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The guided estimate at a level `()`, with what the weights of a step need.

        Raises:
            UsageError: for guidance whose weights are not known.
        """


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 of each sample, `(B,)`, float64."""
    return torch.linalg.vector_norm(x.flatten(1).double(), dim=1).square()

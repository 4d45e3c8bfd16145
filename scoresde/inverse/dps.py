r"""Diffusion posterior sampling: steps of one length towards the measurement.

Chung et al. 2023 (algorithm 1) subtract zeta grad |y - A(D)| from the state after each of DDPM's 1,000 steps. Along
the chain such a step changes the state by beta_i times a score, so the change is that of the score

    grad log p~(y | x_t) = -zeta 1000 / beta(t) grad |y - A(D)|

under the VP SDE with that chain's beta(t). Here it is that score at every noise level and under every SDE. The norm is
that of each sample: in the published code it is that of the whole batch, so that samples depend on their neighbours.

A step of fixed length overshoots where the residual is small. Here a change of D is never longer than what brings A(D)
nearest to y along its direction, so that any number of steps can be taken.

It is no posterior in any limit: the pull does not know the noise, and its strength zeta is chosen by eye.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.inverse.base import Differentiated, PosteriorModel, shift
from scoresde.named_sdes import VPSDE
from scoresde.operators import MeasurementNoise, Operator
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

CHAIN = 1000
TINY = 1e-12  # norm of a residual that pulls no more


@final
class DPS(PosteriorModel):
    """The posterior model of Chung et al. 2023, for any differentiable operator. One backward pass an evaluation.

    Args:
        model, operator, noise: as of every `PosteriorModel`; the method does not use the noise.
        zeta: the length of a step of the chain: 0.3 for super-resolution and deblurring, 0.5 for inpainting, 1 for
            phase retrieval (the paper's appendix D).
    """

    def __init__(
        self, model: ScoreModel, operator: Operator, noise: MeasurementNoise | float, zeta: float = 0.3
    ) -> None:
        super().__init__(model, operator, noise)
        require(zeta > 0, f"zeta={zeta}: must be positive")
        self.zeta = zeta

    def posterior_mean(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Tensor:
        estimate = Differentiated(self.model, x_t, level, cond)
        e = y - self.operator(estimate.x0_hat)
        norm = torch.linalg.vector_norm(e.flatten(1), dim=1).clamp(min=TINY)
        unit = e / match_rank(norm, e)
        gradient = estimate.vjp(self.operator.vjp(estimate.x0_hat, unit), last=True)
        chain = VPSDE()
        t = chain.time(level.log_snr.double()).clamp(0, 1)
        beta = chain.diffusion(t).square() / CHAIN
        # in u = x / alpha, which is the same under every SDE, the change of D is r^2 grad_u
        moved = match_rank((self.zeta / beta).to(x_t), x_t) * shift(level, x_t) * gradient
        share = _not_beyond(self.operator.jvp(estimate.x0_hat, moved), e)
        return estimate.x0_hat + match_rank(share, x_t) * moved


def _not_beyond(change: Tensor, e: Tensor) -> Tensor:
    """The share of a change of A(D), at most 1, that brings it nearest to y = A(D) + e, `(B,)`."""
    change = change.flatten(1)
    nearest = (change * e.flatten(1)).sum(1) / change.square().sum(1).clamp(min=TINY)
    return nearest.clamp(0, 1)

r"""Noise back to data: the eta-family of reverse processes.

All of these have the marginals p_t of the forward SDE (Anderson 1982; Song et al. 2021, equations 6 and 13):

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw,      time running backwards.

eta = 1 is the reverse SDE, eta = 0 the probability-flow ODE. With score = (alpha D - x) / sigma^2 the drift is linear
in x and in the denoiser, which is what makes a step of any linear solver a row of numbers (`samplers.table`).
"""

from __future__ import annotations

from torch import Tensor

from scoresde._shape import match_rank
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE


def drift_coefficients(sde: SDE, t: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """(p, q) of the reverse drift p x + q D(x, t), element by element in t."""
    level = sde.level(t)
    pull = 0.5 * (1 + eta**2) * (sde.diffusion(t) / level.sigma) ** 2
    return sde.drift_coef(t) + pull, -pull * level.alpha


def reverse_drift(model: ScoreModel, x_t: Tensor, t: Tensor, eta: float = 1.0, cond: Tensor | None = None) -> Tensor:
    """The drift of the eta-family at x_t `(B, *)` and t `()` or `(B,)`; eta = 0 is the probability flow."""
    on_x, on_x0 = drift_coefficients(model.sde, t, eta)
    return match_rank(on_x, x_t) * x_t + match_rank(on_x0, x_t) * model.denoise(x_t, t, cond)

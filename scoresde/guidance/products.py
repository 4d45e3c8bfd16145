r"""Products of distributions, level by level: the scores add up.

Several conditions of one model are joined by `ConditionedModel`: p(x) (p(x | a) / p(x))^v (p(x | b) / p(x))^w is the
product of the model under a, under b and under none, with the weights v, w and 1 - v - w (Liu et al. 2022).
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor

from scoresde import condition
from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.guidance.weighed import Weighed, WeighedModel, squared_norm
from scoresde.score_model import ScoreModel, WrappedModel
from scoresde.sde import Level


@final
class ConditionedModel(WrappedModel):
    """A model with one condition for all samples; it takes none itself.

    Args:
        model: the model.
        cond: the condition of a single sample, with a first dimension of 1; None for a model that takes none.
    """

    def __init__(self, model: ScoreModel, cond: Condition) -> None:
        super().__init__(model)
        model.check_cond(cond)
        require(condition.count(cond) in (1, None), "cond: need that of one sample, with a first dimension of 1")
        self.cond = cond

    def check_cond(self, cond: Condition) -> None:
        require(cond is None, "cond: this model has its condition already; leave it out")

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        given = condition.apply(lambda part: part.to(x_t.device).expand(len(x_t), *part.shape[1:]), self.cond)
        return self.model.denoise_at(x_t, level, given)


@final
class ProductModel(WeighedModel):
    """p(x_t)^v q(x_t)^w at every level: D = v D_p + w D_q + (1 - v - w) x_t / alpha.

    As with all guidance, the products at the levels are not the marginals of one diffusion (`scoresde.guidance.pairs`).

    Args:
        model, other: p and q, of samples of one shape; q is re-expressed under the SDE of p. Both get the condition.
        weight, other_weight: v and w, which may be negative.
    """

    def __init__(self, model: ScoreModel, other: ScoreModel, weight: float = 1.0, other_weight: float = 1.0) -> None:
        super().__init__(model)
        require(
            other.shape == model.shape,
            f"other: a model of samples of shape {other.shape}; need {model.shape}, those of the first",
        )
        for name, value in {"weight": weight, "other_weight": other_weight}.items():
            require(math.isfinite(value), f"{name}={value}: must be finite")
        self.other = other if other.sde == model.sde else other.under(model.sde)
        self.weight = weight
        self.other_weight = other_weight
        self.total_weight = weight + other_weight

    def num_calls(self, levels: Level) -> int:
        return self.model.num_calls(levels) + self.other.num_calls(levels)

    def check_cond(self, cond: Condition) -> None:
        self.model.check_cond(cond)
        self.other.check_cond(cond)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        one = self.model.denoise_at(x_t, level, cond)
        return self._product(one, self.other.denoise_at(x_t, level, cond), x_t, level)

    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The weights of the target p^v q^w."""
        require(
            not isinstance(self.model, ProductModel) and not isinstance(self.other, ProductModel),
            "ProductModel: the weights of a product of products are not known; need two models",
        )
        require(self.total_weight > 0, f"weight + other_weight={self.total_weight}: need a positive sum, for a start")
        one = self.model.denoise_at(x_t, level, cond)
        other = self.other.denoise_at(x_t, level, cond)
        u = x_t / level.alpha
        whole = self._product(one, other, x_t, level)
        apart = self.weight * squared_norm(one - u) + self.other_weight * squared_norm(other - u)
        return Weighed(whole, 0.5 * (squared_norm(whole - u) - apart))

    def _product(self, one: Tensor, other: Tensor, x_t: Tensor, level: Level) -> Tensor:
        x0_hat = self.weight * one + self.other_weight * other
        left = 1 - self.total_weight
        return x0_hat if left == 0 else x0_hat + left * x_t / match_rank(level.alpha, x_t)

r"""Guidance by the gradient of a function: D + gamma sigma^2 / alpha grad log p~(y | x_t).

With log p(y | x_t) of an exact classifier and gamma = 1 it is Bayes' rule, and turns the unconditional denoiser into
the conditional one, under every SDE. The function may be any energy or reward; exp(gamma f) then weighs the
distribution at each level.

(Dhariwal and Nichol 2021, section 4, for classifiers. Their algorithm 1 shifts the mean of a step instead:
`scoresde.guidance.mean_form` says how the two scales are related.)

Functions add up: wrap a guided model again for another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.guidance.weighed import Weighed, WeighedModel
from scoresde.guidance.weights import Schedule, Weight
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

LogLikelihood = Callable[[Tensor, Level, Condition], Tensor]
"""f(x, level, cond): x `(B, *shape)` to `(B,)`, in nats."""


@final
class GradientGuidance(WeighedModel):
    """A model tilted by exp(gamma f) at every level.

    A network is evaluated once; with `of="x0_hat"` the gradient goes back through it.

    Args:
        model: the model.
        function: f(x, level, cond) `(B,)`, differentiable in x: log p(y | x_t), an energy's negative, a reward.
        scale: gamma: a number, or a function of the noise level; 0 is off.
        of: what the function is given: "x_t", or "x0_hat" for the model's estimate D of the clean data.
        interval: noise levels (low, high) with guidance; elsewhere gamma = 0.
        model_cond: whether the model takes the condition too; otherwise it is for the function alone.

    Raises:
        UsageError: for a negative scale, or an interval outside the noise levels of the model; while sampling, for a
            function that does not depend on x, gives NaN, or has another shape than `(B,)`.

    Example:
        tilted = GradientGuidance(model, lambda x, level, cond: -x.flatten(1).square().sum(1), 0.5)
    """

    def __init__(
        self,
        model: ScoreModel,
        function: LogLikelihood,
        scale: Weight = 1.0,
        *,
        of: Literal["x_t", "x0_hat"] = "x_t",
        interval: tuple[float, float] | None = None,
        model_cond: bool = False,
    ) -> None:
        super().__init__(model)
        require(of in ("x_t", "x0_hat"), f"of={of!r}: need 'x_t' or 'x0_hat'")
        self.function = function
        self.of = of
        self.model_cond = model_cond
        self.schedule = Schedule(scale, interval, 0.0)
        self.schedule.check_range(model.sde)

    def check_cond(self, cond: Condition) -> None:
        if self.model_cond or cond is None:
            self.model.check_cond(cond if self.model_cond else None)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        gamma = self.schedule.at(level.noise_level)
        if self.schedule.is_all(gamma, 0):
            return self.model.denoise_at(x_t, level, cond if self.model_cond else None)
        return self.weigh(x_t, level, cond).x0_hat

    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The weights of the target p exp(gamma f)."""
        given = cond if self.model_cond else None
        gamma = self.schedule.at(level.noise_level)
        differentiable = torch.is_grad_enabled() and x_t.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t if differentiable else x_t.detach().clone().requires_grad_()
            if self.of == "x0_hat":
                x0_hat = self.model.denoise_at(x, level, given)
                value = self.function(x0_hat, level, cond)
            else:
                value = self.function(x, level, cond)
            gradient = self._gradient(value, x, differentiable)
        if self.of == "x_t":
            x0_hat = self.model.denoise_at(x_t, level, given)
        elif not differentiable:
            x0_hat = x0_hat.detach()
        factor = match_rank((gamma * level.sigma**2 / level.alpha).to(x_t), x_t)
        tilt = gamma.double() * value.detach().double()
        return Weighed(x0_hat + factor * gradient, own=x0_hat, value=tilt)

    def _gradient(self, value: Tensor, x: Tensor, differentiable: bool) -> Tensor:
        """The gradient of the function's values `(B,)`, sample by sample."""
        require(
            value.shape == x.shape[:1],
            f"function: returns shape {tuple(value.shape)} for a batch of {len(x)}; need one number a sample",
        )
        known = None
        if value.requires_grad:
            # the sum, not the mean: each sample's gradient must not depend on the size of the batch
            known = torch.autograd.grad(value.sum(), x, create_graph=differentiable, allow_unused=True)[0]
        if known is None:
            raise UsageError("function: does not depend on x; there is nothing to guide by")
        if not known.is_cuda:  # a GPU would have to be waited for
            require(bool(known.isfinite().all()), "function: its gradient is NaN or infinite")
        return known.to(x.dtype)


def classifier_log_prob(classifier: Callable[[Tensor, Level], Tensor]) -> LogLikelihood:
    """log p(y | x_t) of a noise-conditional classifier, for `GradientGuidance`.

    Args:
        classifier: x_t `(B, *shape)` and a level to logits `(B, num_classes)`.
    """

    def log_prob(x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        if not isinstance(cond, Tensor):
            raise UsageError("cond: classifier guidance needs a label for each sample")
        logits = classifier(x_t, level).float() if x_t.dtype != torch.float64 else classifier(x_t, level)
        return logits.log_softmax(1).gather(1, cond.long()[:, None])[:, 0]

    return log_prob

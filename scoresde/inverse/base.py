r"""Models of p(x | y) made from a model of p(x): posteriors of measurements y = A(x) + noise.

Bayes' rule at every noise level is a change of the denoiser,

    D_y = D + sigma^2 / alpha grad log p(y | x_t),        p(y | x_t) = E[p(y | x_0) | x_t].

The methods differ in what they put for p(y | x_t). So each is a map from `ScoreModel` to `ScoreModel`, and works with
every SDE, sampler, corrector and likelihood.

The measurement is the condition: `(B, *measured_shape)`, one for each sample. If the model takes a condition of its
own, the measurement is the part "y" of a dict: the other parts go to the model, or the part "cond" alone if there is
no other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from scoresde import condition
from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.operators import LinearOperator, MeasurementNoise, Operator, as_noise
from scoresde.score_model import ScoreModel, WrappedModel
from scoresde.sde import Level


class PosteriorModel(WrappedModel):
    """A model of p(x | y); y is the condition, as above.

    Args:
        model: of p(x).
        operator: what is measured.
        noise: of the measurement, or the deviation of Gaussian noise.

    Raises:
        UsageError: for an operator of samples of another shape, or one that the method cannot take.
    """

    def __init__(self, model: ScoreModel, operator: Operator, noise: MeasurementNoise | float) -> None:
        super().__init__(model)
        require(
            operator.shape == model.shape,
            f"operator={operator}: measures samples of shape {operator.shape}; this model has {model.shape}",
        )
        self.operator = operator.to(model.device, model.dtype)
        self.measurement_noise = as_noise(noise)

    def check_cond(self, cond: Condition) -> None:
        y, own = self.split(cond)
        self.operator.check_measured(y, "cond" if isinstance(cond, Tensor) else "cond['y']")
        self.model.check_cond(own)

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        y, own = self.split(cond)
        return {"y": y, "cond": self.model.null_cond(own, hidden)}

    def split(self, cond: Condition) -> tuple[Tensor, Condition]:
        """The measurements, and the condition of the model."""
        if isinstance(cond, Mapping):
            y = cond.get("y")
            rest = {name: part for name, part in cond.items() if name != "y"}
        else:
            y = cond
            rest = {}
        if not isinstance(y, Tensor):
            raise UsageError(
                f"cond: {condition.describe(cond)}; need the measurements, (batch, "
                f"{', '.join(map(str, self.operator.measured_shape))}), or a dict with them as 'y'"
            )
        if rest.keys() == {"cond"}:
            return y, rest["cond"]
        return y, rest or None

    @abstractmethod
    def posterior_mean(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Tensor:
        """D_y at a level, for measurements and the condition of the model."""

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        y, own = self.split(cond)
        return self.posterior_mean(x_t, level, y.to(x_t), own)


class MeasuredModel(PosteriorModel):
    """A model that knows what is measured and leaves the denoiser as it is.

    For samplers that use the measurement themselves: `Replacement`, `RePaint`, `DDRM`, `SplitGibbs`.
    """

    def posterior_mean(self, x_t: Tensor, level: Level, y: Tensor, cond: Condition) -> Tensor:
        return self.model.denoise_at(x_t, level, cond)


def need_linear(method: str, operator: Operator) -> LinearOperator:
    """The operator; raises `UsageError` if it is not linear."""
    if not isinstance(operator, LinearOperator):
        raise UsageError(f"operator={operator}: is not linear, as {method} needs it; DPS, MMPS and SplitGibbs take it")
    return operator


class Differentiated:
    """The estimate D at a state, and products with its derivative: J'v = grad_x <D(x), v>.

    One forward pass is kept; each product is one backward pass.
    """

    def __init__(self, model: ScoreModel, x_t: Tensor, level: Level, cond: Condition) -> None:
        self._keep = torch.is_grad_enabled() and x_t.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            self.x = x_t if self._keep else x_t.detach().clone().requires_grad_()
            self._x0_hat = model.denoise_at(self.x, level, cond)
        self.x0_hat = self._x0_hat if self._keep else self._x0_hat.detach()

    def vjp(self, v: Tensor, last: bool = False) -> Tensor:
        """J'v for v `(B, *shape)`; with `last`, the forward pass is let go."""
        if not self._x0_hat.requires_grad:
            return torch.zeros_like(self.x)
        with torch.inference_mode(False), torch.enable_grad():
            v = v if self._keep else v.clone()
            return torch.autograd.grad(
                self._x0_hat, self.x, v, retain_graph=not last or self._keep, create_graph=self._keep
            )[0]


def shift(level: Level, x: Tensor) -> Tensor:
    """sigma^2 / alpha of a level, to multiply x."""
    return match_rank((level.sigma**2 / level.alpha).to(x), x)

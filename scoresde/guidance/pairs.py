r"""Guidance away from a reference: D_ref + w (D - D_ref).

- Classifier-free guidance (Ho and Salimans 2022): the reference is the same network without its condition.
- Autoguidance (Karras et al. 2024): the reference is a worse model of the same condition, such as an earlier checkpoint
  or a shorter average of the same run.

w = 1 is off and costs nothing more; w = 0 is the reference alone. (The paper of classifier-free guidance counts from 0:
its w is ours minus 1.) At each level the guided score is that of p_ref(x)^(1 - w) p(x)^w, of the marginals there. These
are not the marginals of one diffusion. So samplers of the reverse SDE or the flow do not draw from the powered
distribution of the data: they overshoot its mean, and their variance is too small. Langevin steps with the guided score
correct this at every level: `samplers.pilot_corrector` (docs/guidance.md has the figures).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde import condition
from scoresde._batches import choose_batch_size
from scoresde._shape import match_rank
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.guidance.rules import Linear, Rule
from scoresde.guidance.weighed import Weighed, WeighedModel, squared_norm
from scoresde.guidance.weights import Schedule, Weight
from scoresde.models.split import SplitModel
from scoresde.score_model import GridModel, ScoreModel
from scoresde.sde import Level

Outputs = Callable[[int, Tensor, Condition], tuple[Tensor, Tensor]]


class PairOnGrid(NamedTuple):
    """Two estimates at times that are known beforehand, both as D = c_skip x_t + c_out F.

    Attributes:
        c_skip, c_out: factors `(n,)`.
        both: F of the model and of its reference, at a time.
        alone: F of the model alone.
        reference: F of the reference alone.
    """

    c_skip: Tensor
    c_out: Tensor
    both: Outputs
    alone: Callable[[int, Tensor, Condition], Tensor]
    reference: Callable[[int, Tensor, Condition], Tensor]


class GuidedModel(WeighedModel):
    """A model pushed away from a reference.

    Its likelihood is that of the guided flow, not of p(x | cond).

    Args:
        model: the model.
        scale: the weight w: a number, or a function of the noise level r = sigma / alpha.
        interval: noise levels (low, high) with guidance, low < r <= high; elsewhere w = 1. None: everywhere.
        rule: how the two estimates are combined; `Linear()` by default.

    Raises:
        UsageError: for a negative scale, or an interval outside the noise levels of the model.
    """

    def __init__(
        self, model: ScoreModel, scale: Weight, interval: tuple[float, float] | None, rule: Rule | None
    ) -> None:
        super().__init__(model)
        self.rule = Linear() if rule is None else rule
        self.schedule = Schedule(scale, interval, 1.0)
        self.schedule.check_range(model.sde)
        self.one_evaluation_a_step = self.rule.remembers or model.one_evaluation_a_step

    @abstractmethod
    def _both(self, x_t: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
        """D of the model and of its reference."""

    @abstractmethod
    def _reference(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        """D of the reference."""

    @abstractmethod
    def _reference_calls(self, levels: Level) -> int:
        """Network evaluations of the reference."""

    @abstractmethod
    def _pair(self, levels: Level, like: Tensor) -> PairOnGrid:
        """Both on a grid."""

    @final
    def num_calls(self, levels: Level) -> int:
        levels = levels.map(lambda part: part.reshape(-1))
        w = self.schedule.at(levels.noise_level)
        return self.model.num_calls(levels[w != 0]) + self._reference_calls(levels[w != 1])

    @final
    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        if self.rule.remembers:
            raise UsageError(
                f"momentum of {self.rule}: needs a sampler that is a table with one evaluation a step, such as DDIM(); "
                "set it to 0"
            )
        w = self.schedule.at(level.noise_level)
        if self.schedule.is_all(w, 1):
            return self.model.denoise_at(x_t, level, cond)
        if self.schedule.is_all(w, 0):
            return self._reference(x_t, level, cond)
        x0_hat, reference = self._both(x_t, level, cond)
        return self.rule.start()(x0_hat, reference, match_rank(w.to(x_t), x_t))

    @final
    def weigh(self, x_t: Tensor, level: Level, cond: Condition = None) -> Weighed:
        """The weights of the target p_ref^(1 - w) p^w: the rate is w (w - 1) |D - D_ref|^2 / 2."""
        w = self.schedule.weight
        if callable(w) or self.schedule.interval is not None or not self.rule.linear:
            raise UsageError(
                f"{type(self).__name__}: the weights of particles are known for one scale at all levels and the linear "
                "rule; leave interval and rule out"
            )
        if w == 1:
            x0_hat = self.model.denoise_at(x_t, level, cond)
            return Weighed(x0_hat, torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device))
        x0_hat, reference = self._both(x_t, level, cond)
        rate = 0.5 * w * (w - 1) * squared_norm(x0_hat - reference)
        return Weighed(self.rule.start()(x0_hat, reference, w), rate)

    @final
    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        weights = self.schedule.at(levels.noise_level).tolist()
        pair = self._pair(levels, like)
        combine = self.rule.start()

        def output(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            if weights[k] == 1:
                return pair.alone(k, x_t, cond)
            if weights[k] == 0:
                return pair.reference(k, x_t, cond)
            return combine(*pair.both(k, x_t, cond), weights[k])

        if self.rule.linear:  # the same for F as for D
            return GridModel(pair.c_skip, pair.c_out, output)
        c_skip = pair.c_skip.tolist()
        c_out = pair.c_out.tolist()

        def denoised(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            nonlocal combine
            if k == 0:
                combine = self.rule.start()

            def estimate(network: Tensor) -> Tensor:
                return torch.mul(x_t, c_skip[k]).add_(network, alpha=c_out[k])

            if weights[k] == 1:
                return estimate(pair.alone(k, x_t, cond))
            x0_hat, reference = pair.both(k, x_t, cond)
            return combine(estimate(x0_hat), estimate(reference), weights[k])

        return GridModel(torch.zeros_like(pair.c_skip), torch.ones_like(pair.c_out), denoised)


@final
class ClassifierFreeGuidance(GuidedModel):
    """D(x, none) + w (D(x, cond) - D(x, none)) (Ho and Salimans 2022).

    Both come from one call of the model with a doubled batch, or, if that would be larger than a batch of the default
    size, from two calls: a large batch gains nothing from being doubled, and needs twice the memory. The network must
    have been trained with dropped conditions (`network.label_dropout`).

    Args:
        model: a model with conditions.
        scale: w: a number, or a function of the noise level; 1 is off.
        interval: noise levels (low, high) with guidance (Kynkaanniemi et al. 2024); elsewhere w = 1.
        rule: `Linear()`, `Rescale(...)` or `APG(...)`.

    Raises:
        UsageError: while sampling, for a model without a null condition.

    Example:
        guided = ClassifierFreeGuidance(model, 2.0, interval=(0.3, 1.6))
        x = sample(guided, DDIM(), 16, cond=torch.full((16,), 3)).x
    """

    def __init__(
        self,
        model: ScoreModel,
        scale: Weight,
        interval: tuple[float, float] | None = None,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(model, scale, interval, rule)

    def check_cond(self, cond: Condition) -> None:
        count = condition.count(cond)
        if count is None:
            raise UsageError("cond: guidance needs a condition, such as a label for each sample")
        self.model.check_cond(cond)
        try:
            self.model.null_cond(
                cond, torch.ones(count, dtype=torch.bool, device=next(condition.parts(cond))[1].device)
            )
        except UsageError as error:
            raise UsageError(
                f"classifier-free guidance: {error}; or take Autoguidance or ClassifierGuidance, which need no null "
                "condition"
            ) from error

    def _none(self, x_t: Tensor, cond: Condition) -> Condition:
        return self.model.null_cond(cond, torch.ones(x_t.shape[0], dtype=torch.bool, device=x_t.device))

    def _with_none(self, x_t: Tensor, cond: Condition) -> Condition:
        """The condition, and "none" behind it, for a doubled batch; both get the mask that "none" may need."""
        given = torch.zeros(x_t.shape[0], dtype=torch.bool, device=x_t.device)
        return self.model.null_cond(condition.join([cond, cond]), torch.cat([given, ~given]))

    def _reference(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        return self.model.denoise_at(x_t, level, self._none(x_t, cond))

    def _reference_calls(self, levels: Level) -> int:
        return self.model.num_calls(levels)

    def _for_both(self, count: int) -> ScoreModel:
        """The model for a doubled batch of `count` samples."""
        return SplitModel(self.model, max(count, choose_batch_size(None, self.shape, self.device)))

    def _both(self, x_t: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
        joined = self._with_none(x_t, cond)
        twice = level if level.t.ndim == 0 else Level.join(torch.cat, [level, level])
        model = self.model if torch.compiler.is_compiling() else self._for_both(len(x_t))  # a graph takes any number
        x0_hat, reference = model.denoise_at(torch.cat([x_t, x_t]), twice, joined).unflatten(0, (2, -1)).unbind()
        return x0_hat, reference

    def _pair(self, levels: Level, like: Tensor) -> PairOnGrid:
        single = self.model.on_grid(levels, like)
        double = self._for_both(len(like)).on_grid(levels, torch.cat([like, like]))

        def both(k: int, x_t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
            joined = self._with_none(x_t, cond)
            output, reference = double.network(k, torch.cat([x_t, x_t]), joined).unflatten(0, (2, -1)).unbind()
            return output, reference

        def without(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            return single.network(k, x_t, self._none(x_t, cond))

        return PairOnGrid(single.c_skip, single.c_out, both, single.network, without)


@final
class Autoguidance(GuidedModel):
    """D_worse + w (D - D_worse): away from a worse model of the same condition (Karras et al. 2024).

    Args:
        model: the model.
        worse: a smaller, or shorter trained, model of the same data; under another SDE it is re-expressed.
        scale: w: a number, or a function of the noise level; 1 is off.
        interval: noise levels (low, high) with guidance; elsewhere w = 1.
        rule: `Linear()`, `Rescale(...)` or `APG(...)`.

    Raises:
        UsageError: for models of different samples.
    """

    def __init__(
        self,
        model: ScoreModel,
        worse: ScoreModel,
        scale: Weight,
        interval: tuple[float, float] | None = None,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(model, scale, interval, rule)
        require(
            worse.shape == model.shape,
            f"worse: a model of samples of shape {worse.shape}; need {model.shape}, those of the model",
        )
        self.worse = worse if worse.sde == model.sde else worse.under(model.sde)
        self.one_evaluation_a_step = self.one_evaluation_a_step or worse.one_evaluation_a_step

    def check_cond(self, cond: Condition) -> None:
        self.model.check_cond(cond)
        self.worse.check_cond(cond)

    def _reference(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        return self.worse.denoise_at(x_t, level, cond)

    def _reference_calls(self, levels: Level) -> int:
        return self.worse.num_calls(levels)

    def _both(self, x_t: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
        return self.model.denoise_at(x_t, level, cond), self.worse.denoise_at(x_t, level, cond)

    def _pair(self, levels: Level, like: Tensor) -> PairOnGrid:
        better = self.model.on_grid(levels, like)
        worse = self.worse.on_grid(levels, like)
        on_x = ((worse.c_skip - better.c_skip) / better.c_out).tolist()
        on_output = (worse.c_out / better.c_out).tolist()

        def reference(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            output = worse.network(k, x_t, cond)
            if on_x[k] == 0 and on_output[k] == 1:
                return output
            return torch.mul(x_t, on_x[k]).add_(output, alpha=on_output[k])

        def both(k: int, x_t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
            return better.network(k, x_t, cond), reference(k, x_t, cond)

        return PairOnGrid(better.c_skip, better.c_out, both, better.network, reference)

r"""The hybrid objective, which also trains the variance of the reverse process (Nichol and Dhariwal 2021, section 3).

    L = L_simple + lambda L_vlb,    L_vlb = sum over the steps of a chain of KL(q(x_s | x_t, x_0) | p(x_s | x_t)) / dim,

with lambda = 0.001. L_simple is the denoising loss, which does not see the variance. In L_vlb the mean of p counts as a
constant, so that it trains v alone, the network's second output (`scoresde.reverse`). L_vlb is estimated by one step a
sample, at the time at which its network is evaluated for L_simple, times the number of steps.

**The chain.** Its levels are as dense as the training times: the step from the time of quantile u goes to that of
quantile u - 1 / num_steps. With `DiscreteTimes` these are the steps of a DDPM chain, with `UniformTimes` steps of equal
length, each with its own offset. v learned on it serves for all steps: beta and betatilde are those of the step made.

**The last step**, from quantiles below 1 / num_steps, goes to clean data. Its cost is -log p(x_0 | x_t) of the decoder
N(D, Sigma), whose variance is between those of `scoresde.reverse`. Whole numbers have the mass of their unit interval
(Ho et al. 2020, equation 13, but with bins of equal width at the ends of the range too), other data a density.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import BatchNoise
from scoresde.objective import (
    Averaged,
    Batch,
    DiscreteTimes,
    LadderTimes,
    NoiseWeighting,
    Objective,
    TrainingTimes,
    UniformTimes,
    Weighting,
    output_error,
)
from scoresde.reverse import decoder_log_prob, decoder_range, step_cost, variance_range
from scoresde.sde import SDE, Level


@final
@dataclass(frozen=True)
class HybridObjective(Objective[NetworkScoreModel]):
    """Denoising score matching, and with it the variance of the reverse steps.

    Attributes:
        times, weighting: of L_simple, as in `DenoisingObjective`.
        num_steps: of the chain on which the variance is learned.
        vlb_weight: lambda; nats a dimension count as L_simple does.
    """

    times: TrainingTimes = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=NoiseWeighting)
    num_steps: int = 1000
    vlb_weight: float = 0.001  # Nichol and Dhariwal 2021, section 3.1

    learns_variance = True

    def __post_init__(self) -> None:
        require(self.num_steps >= 2, f"num_steps={self.num_steps}: need at least 2")
        require(self.vlb_weight > 0, f"vlb_weight={self.vlb_weight}: must be positive")
        if isinstance(self.times, DiscreteTimes | LadderTimes):
            require(
                self.times.num_levels % self.num_steps == 0,
                f"num_steps={self.num_steps}: need a divisor of num_levels={self.times.num_levels} of {self.times}",
            )

    def draw(self, model: NetworkScoreModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return {
            "u": noise.stratified("times", torch.float64),
            "eps": noise.normal("eps", model.shape, model.dtype),
        }

    def at(
        self,
        model: NetworkScoreModel,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        """w(t) |D - x_0|^2 / dim + lambda num_steps KL / dim of each sample."""
        x_0 = model.codec.encode(batch.raw, model.dtype)
        u = draws["u"]
        with torch.no_grad():
            level = model.sde.level(self.times.at(model.sde, u)).to(x_0.device, x_0.dtype)
            c_out = model.parametrization.c_out(level)
            weight = self.weighting(model, level) * c_out**2
        error, v = output_error(model, x_0, level, draws["eps"], batch.cond)
        if v is None:
            raise UsageError(
                "objective HybridObjective: trains a variance, and the network has no second output for it; make it "
                "with network.learned_variance=True"
            )
        simple = weight * error.flatten(1).square().mean(1)
        of_x0 = (match_rank(c_out, x_0) * error).detach()  # D - x_0
        cost = self._cost(model, batch.raw, x_0, u, of_x0, v)
        return simple + self.vlb_weight * self.num_steps * cost.flatten(1).mean(1)

    def _cost(self, model: NetworkScoreModel, raw: Tensor, x_0: Tensor, u: Tensor, error: Tensor, v: Tensor) -> Tensor:
        """The cost of each sample's step, of each entry `(B, *)`, for an error D - x_0 and the output v."""
        last, start, end = self._steps(model.sde, u)
        start = start.match_rank(x_0)
        end = end.match_rank(x_0)
        v = v.double()  # as autocast may have it in a narrow type
        inner = step_cost(error.double(), v * variance_range(end, start), end, start)
        # where the step is the last one, `end` is the level that the decoder starts at
        std = end.noise_level * torch.exp(0.5 * (v - 1) * decoder_range(end, start))
        decoder = -_decoder_log_prob(model, raw, x_0, x_0 + error, std)
        return torch.where(last.reshape(-1, *[1] * (x_0.ndim - 1)), decoder, inner).to(x_0.dtype)

    @torch.no_grad()
    def _steps(self, sde: SDE, u: Tensor) -> tuple[Tensor, Level, Level]:
        """Whether a quantile's step is the last one; the levels from and to which it goes, float64.

        For the last one they are those of the step that arrived at the quantile's level.
        """
        step = 1 / self.num_steps
        last = u < step
        start = torch.where(last, u + step, u)
        return last, sde.level(self.times.at(sde, start)), sde.level(self.times.at(sde, start - step))


def _decoder_log_prob(model: NetworkScoreModel, raw: Tensor, x_0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log p(x_0) of each entry under N(mean, std^2): of the unit interval of whole numbers, or a density; nats."""
    if raw.is_floating_point() or not isinstance(model.codec, Scaling):
        return -0.5 * ((x_0 - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
    width = model.codec.encode_change(torch.ones_like(x_0[:1], dtype=torch.float64)).abs()
    return decoder_log_prob(x_0, mean, std, width, -math.inf, math.inf)

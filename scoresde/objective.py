r"""Training: which times, which weight, which target.

For x_t = alpha x_0 + sigma eps the mean of |D(x_t, t) - x_0|^2 is smallest at D = E[x_0 | x_t], and the score follows.
Every denoising objective of the field is

    L = E_t E_{x_0, eps} w(t) |D(x_t, t) - x_0|^2 / dim,

and they differ in the distribution of t and in w alone. The loss is computed in the network's own units,
w c_out^2 |F - F*|^2, where nothing cancels at small noise. Whatever the positive weight, the best D is the same; the
weight decides where a network of limited capacity and training time is accurate.

    weighting              w(t)                       in other words
    NoiseWeighting         (alpha / sigma)^2          |eps_hat - eps|^2: Ho et al. 2020, L_simple; Song et al. 2021,
                                                      lambda = sigma^2
    DenoisedWeighting      1                          |D - x_0|^2
    VelocityWeighting      1 + (alpha / sigma)^2      |v_hat - v|^2 on a variance-preserving path (Salimans and Ho 2022)
    EDMWeighting           (r^2 + s^2) / (r s)^2      unit weight of F, r = sigma / alpha, s = sigma_data (Karras et
                                                      al. 2022, table 1)
    MinSNRWeighting        min((alpha/sigma)^2, 5)    |eps_hat - eps|^2 at large noise, 5 |D - x_0|^2 at small noise
                                                      (Hang et al. 2023, section 3.4)
    LikelihoodWeighting    g^2 alpha^2 / sigma^4      g^2 |score - grad log p(x_t | x_0)|^2: with times uniform, an
                                                      upper bound on the negative log-likelihood up to a constant
                                                      (Song et al. 2021, "Maximum likelihood training", theorem 1)
    FlowWeighting          (g^2 alpha / 2 sigma^2)^2  |u_hat - u|^2, u = alpha' x_0 + sigma' eps the path's own
                                                      velocity: flow matching. On the straight path alpha = 1 - t,
                                                      sigma = t it is 1 / t^2, and u = eps - x_0: rectified flow
                                                      (Liu et al. 2023, equation 1; Lipman et al. 2023, equation 9)

In the last one u_hat has D for x_0 and (x_t - alpha D) / sigma for eps, so u_hat - u is
(alpha' - sigma' alpha / sigma) (D - x_0). There f cancels: alpha' = f alpha, and sigma' = f sigma + g^2 / (2 sigma).

`VariationalObjective` is the same error with the weight and the constants that make its mean a bound on -log p(x_0).
`HybridObjective` (`scoresde.hybrid`) also trains the variance of the reverse steps.

SMLD's discrete loss (Song and Ermon 2019, equation 6, with lambda = sigma^2) is LadderTimes under the VE SDE with
NoiseWeighting, and DDPM's L_simple is DiscreteTimes under a DDPM chain with it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar, final

import torch
from torch import Tensor

from scoresde.bounds import prior_cost, reconstruction_cost
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.learned_sde import shape_gradient
from scoresde.models.base import NetworkModel, TrainedModel
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import BatchNoise
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level


class Batch(NamedTuple):
    """The data of a training step: raw samples `(B, *raw_shape)`, and their conditions."""

    raw: Tensor
    cond: Condition = None


Averaged = Callable[[], contextlib.AbstractContextManager[None]]
Model = TypeVar("Model", bound=TrainedModel)


class TrainingTimes(ABC):
    """A distribution of training times."""

    @abstractmethod
    def at(self, sde: SDE, u: Tensor) -> Tensor:
        """The times in [sde.t_min, sde.t_max] of numbers u `(B,)` that are uniform on (0, 1)."""


@final
@dataclass(frozen=True)
class UniformTimes(TrainingTimes):
    """Uniform on [t_min, t_max] (Song et al. 2021, equation 7)."""

    def at(self, sde: SDE, u: Tensor) -> Tensor:
        return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


@final
@dataclass(frozen=True)
class DiscreteTimes(TrainingTimes):
    """The levels t_max i / N, i = 1 .. N = `num_levels`, of a chain, equally likely (Ho et al. 2020, algorithm 1)."""

    num_levels: int = 1000

    def __post_init__(self) -> None:
        require(self.num_levels >= 1, f"num_levels={self.num_levels}: need at least 1")

    def at(self, sde: SDE, u: Tensor) -> Tensor:
        level = (u * self.num_levels).floor().clamp(max=self.num_levels - 1) + 1
        return (sde.t_max * level / self.num_levels).clamp(sde.t_min, sde.t_max)


@final
@dataclass(frozen=True)
class LadderTimes(TrainingTimes):
    """N = `num_levels` times evenly spaced from t_min to t_max, both included, equally likely.

    Under VE they are SMLD's geometric ladder of noise levels (Song and Ermon 2020, section 3; Song et al. 2021,
    appendix C); with `NoiseWeighting` the loss is theirs, sigma_i^2 |score + eps / sigma_i|^2.
    """

    num_levels: int = 1000

    def __post_init__(self) -> None:
        require(self.num_levels >= 2, f"num_levels={self.num_levels}: need at least 2")

    def at(self, sde: SDE, u: Tensor) -> Tensor:
        rung = (u * self.num_levels).floor().clamp(max=self.num_levels - 1)
        share = rung / (self.num_levels - 1)
        return (sde.t_min + (sde.t_max - sde.t_min) * share).clamp(sde.t_min, sde.t_max)


@final
@dataclass(frozen=True)
class LogNormalNoiseLevels(TrainingTimes):
    """log(sigma / alpha) ~ N(mean, std^2), kept within the SDE's range (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, f"std={self.std}: must be positive")

    def at(self, sde: SDE, u: Tensor) -> Tensor:
        log_noise_level = self.mean + self.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        return sde.time(-2 * log_noise_level).clamp(sde.t_min, sde.t_max)


class Weighting(ABC):
    """The weight w(t) of |D - x_0|^2."""

    @abstractmethod
    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        """The weight at each time of a level of the model's SDE."""


@final
@dataclass(frozen=True)
class NoiseWeighting(Weighting):
    """(alpha / sigma)^2."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class DenoisedWeighting(Weighting):
    """1."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return torch.ones_like(level.alpha)


@final
@dataclass(frozen=True)
class VelocityWeighting(Weighting):
    """1 + (alpha / sigma)^2."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return 1 + (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """1 / sigma_data^2 + (alpha / sigma)^2, with the model's sigma_data."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return 1 / model.sigma_data**2 + (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class MinSNRWeighting(Weighting):
    """min((alpha / sigma)^2, gamma)."""

    gamma: float = 5.0  # Hang et al. 2023, section 4

    def __post_init__(self) -> None:
        require(self.gamma > 0, f"gamma={self.gamma}: must be positive")

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return ((level.alpha / level.sigma) ** 2).clamp(max=self.gamma)


@final
@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """g^2 alpha^2 / sigma^4."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return (model.sde.diffusion(level.t) / level.sigma * (level.alpha / level.sigma)) ** 2


@final
@dataclass(frozen=True)
class FlowWeighting(Weighting):
    """(g^2 alpha / (2 sigma^2))^2."""

    def __call__(self, model: ScoreModel, level: Level) -> Tensor:
        return (0.5 * (model.sde.diffusion(level.t) / level.sigma) ** 2 * level.alpha) ** 2


class Objective(ABC, Generic[Model]):
    """The quantity that training minimises. Calling it returns one loss a sample, `(B,)`; average it for a step.

    Attributes:
        trains: the kind of model that it is for.
        learns_variance: whether it trains a network's second output (`scoresde.hybrid`).
    """

    trains: ClassVar[type[TrainedModel]] = NetworkScoreModel
    learns_variance: ClassVar[bool] = False

    @abstractmethod
    def draw(self, model: Model, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        """The random numbers that the loss of a batch depends on, by name, one entry a sample in each: `(B, ...)`."""

    @abstractmethod
    def at(
        self,
        model: Model,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        """The loss of each sample, `(B,)`.

        Args:
            model: the model in training.
            batch: raw data and conditions.
            draws: what `draw` gave for them.
            averaged: a context that gives the model its averaged weights, for targets that an objective computes
                without gradients before it evaluates the model itself. It changes nothing outside of training.
        """

    @final
    def __call__(self, model: Model, raw: Tensor, cond: Condition = None, noise: BatchNoise | None = None) -> Tensor:
        """Draws what is random and returns the loss of each sample.

        Args:
            model: the model in training.
            raw: data `(B, *raw_shape)`; in the model's units for a model without a codec.
            cond: conditions of the batch, or None.
            noise: source of random numbers; keyed by torch's global random state if None.
        """
        noise = BatchNoise.fresh(len(raw), raw.device) if noise is None else noise
        batch = Batch(raw, cond)
        return self.at(model, batch, self.draw(model, batch, noise))


def times_and_noise(times: TrainingTimes, model: NetworkModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
    """A time "t" `(B,)` and a noise "eps" `(B, *shape)` for each sample."""
    return {
        "t": times.at(model.sde, noise.stratified("times")).to(model.dtype),
        "eps": noise.normal("eps", model.shape, model.dtype),
    }


@final
@dataclass(frozen=True)
class DenoisingObjective(Objective[NetworkScoreModel]):
    """Denoising score matching: times, weight, and the network's own target. A learned path is not trained."""

    times: TrainingTimes = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=NoiseWeighting)

    def draw(self, model: NetworkScoreModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return times_and_noise(self.times, model, batch, noise)

    def at(
        self,
        model: NetworkScoreModel,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        """w(t) |D - x_0|^2 / dim of each sample."""
        x_0 = model.codec.encode(batch.raw, model.dtype)
        with torch.no_grad():  # a learned path would lower this loss by moving to levels where it is low
            level = model.sde.level(draws["t"])
            weight = self.weighting(model, level) * model.parametrization.c_out(level) ** 2
        return weight * squared_error(model, x_0, level, draws["eps"], batch.cond)


@final
@dataclass(frozen=True)
class VariationalObjective(Objective[NetworkScoreModel]):
    """An upper bound on -log p(x_0) / dim in nats, estimated at one uniform time a sample (`scoresde.bounds`).

    Prior and reconstruction at the ends, and gamma = -log_snr between them,

        (|alpha_T x_0|^2 / (2 sigma_T^2)  +  dim/2 log(2 pi e (sigma/alpha)^2 at t_min)
         +  (t_max - t_min)/2 gamma'(t) |eps - eps_hat|^2) / dim,

    the continuous-time loss of Kingma et al. 2021, section 5; gamma' = (g / sigma)^2. On a fixed path the first two do
    not depend on the model, and the third is half of `LikelihoodWeighting`'s loss times t_max - t_min. The ends of a
    `LearnedVPSDE` are trained with it, and its shape so that the third varies least.
    """

    def draw(self, model: NetworkScoreModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return times_and_noise(UniformTimes(), model, batch, noise)

    def at(
        self,
        model: NetworkScoreModel,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        """The bound for each sample, in nats a dimension."""
        x_0 = model.codec.encode(batch.raw, model.dtype)
        t = draws["t"]
        sde = model.sde
        dim = x_0[0].numel()
        with shape_gradient() as losses:  # see `scoresde.learned_sde`
            level = sde.level(t)
            slope = (sde.diffusion(t) / level.sigma) ** 2
        weight = slope * (model.parametrization.c_out(level) / level.noise_level) ** 2
        error = squared_error(model, x_0, level, draws["eps"], batch.cond)
        diffusion = 0.5 * (sde.t_max - sde.t_min) * weight * error
        losses.append(diffusion.detach())
        first = sde.level(torch.full_like(t[0], sde.t_min))
        last = sde.level(torch.full_like(t[0], sde.t_max))
        return (prior_cost(x_0, last) + reconstruction_cost(dim, first)) / dim + diffusion


def squared_error(model: NetworkScoreModel, x_0: Tensor, level: Level, eps: Tensor, cond: Condition) -> Tensor:
    """|F - F*|^2 / dim of each sample `(B,)`; arguments as of `output_error`."""
    return output_error(model, x_0, level, eps, cond)[0].flatten(1).square().mean(1)


def output_error(
    model: NetworkScoreModel, x_0: Tensor, level: Level, eps: Tensor, cond: Condition
) -> tuple[Tensor, Tensor | None]:
    """F - F* `(B, *)` at a level `(B,)`, F* the value of F at which D = x_0; and v of a learned variance, or None."""
    wide = level.match_rank(x_0)
    output, v = model.outputs(wide.alpha * x_0 + wide.sigma * eps, level, cond)
    return output - model.parametrization.target(wide, x_0, eps), v

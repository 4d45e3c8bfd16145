r"""Training: which times, which weight, which target.

For x_t = alpha x_0 + sigma eps the mean of |D(x_t, t) - x_0|^2 is least at D = E[x_0 | x_t], and the score follows.
Every denoising objective of the field is

    L = E_t E_{x_0, eps} w(t) |D(x_t, t) - x_0|^2 / dim,

and they differ in the distribution of t and in w alone. The loss is computed in the network's own units,
w c_out^2 |F - F*|^2, where nothing cancels at small noise. Whatever the positive weight, the best D is the same; the
weight decides where a network of limited capacity and time is accurate.

    weighting              w(t)                       in other words
    NoiseWeighting         (alpha / sigma)^2          |eps_hat - eps|^2: Ho et al. 2020, L_simple; Song et al. 2021,
                                                      lambda = sigma^2
    DenoisedWeighting      1                          |D - x_0|^2
    VelocityWeighting      1 + (alpha / sigma)^2      |v_hat - v|^2 on a variance-preserving path (Salimans and Ho 2022)
    EDMWeighting           (r^2 + sd^2) / (r sd)^2    unit weight of F, r = sigma / alpha (Karras et al. 2022, table 1)
    MinSNRWeighting        min((alpha/sigma)^2, 5)    |x_0| error where noise is large, |eps| error elsewhere, capped
                                                      (Hang et al. 2023, section 3.4)
    LikelihoodWeighting    g^2 alpha^2 / sigma^4      g^2 |score - grad log p(x_t | x_0)|^2: with times uniform, an
                                                      upper bound on the negative log-likelihood up to a constant
                                                      (Song et al. 2021, "Maximum likelihood training", theorem 1)
    FlowWeighting          (g^2 alpha / 2 sigma^2)^2  |u_hat - u|^2, u = alpha' x_0 + sigma' eps the path's own
                                                      velocity: flow matching. On the straight path alpha = 1 - t,
                                                      sigma = t it is 1 / t^2, and u = eps - x_0: rectified flow
                                                      (Liu et al. 2023, equation 1; Lipman et al. 2023, equation 9)

The last one: u_hat puts D for x_0 and (x_t - alpha D) / sigma for eps, so that u_hat - u is
(alpha' - sigma' alpha / sigma) (D - x_0). There f cancels: alpha' = f alpha, and sigma' = f sigma + g^2 / (2 sigma).

`VariationalObjective` is the same error with the weight and the constants that make its mean a bound of -log p(x_0).

SMLD's discrete loss (Song and Ermon 2019, equation 6, with lambda = sigma^2) is LadderTimes under the VE SDE with
NoiseWeighting, and DDPM's L_simple is DiscreteTimes under a DDPM chain with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from scoresde.bounds import prior_cost, reconstruction_cost
from scoresde.errors import require
from scoresde.learned_sde import shape_gradient
from scoresde.score_model import NetworkScoreModel
from scoresde.sde import SDE, Level


def _stratified(batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), one in each of `batch_size` equal cells, the cells in random order.

    Each is uniform on its own; together they cover the interval evenly, so that the loss of a batch varies less
    (the idea of Kingma et al. 2021, appendix I.1, with a fresh offset in every cell).
    """
    cell = torch.randperm(batch_size, device=device, generator=generator)
    return (cell + torch.rand(batch_size, device=device, generator=generator)) / batch_size


class TrainingTimes(ABC):
    """A distribution of training times."""

    @abstractmethod
    def sample(self, sde: SDE, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """`(batch_size,)` times in [sde.t_min, sde.t_max], float32."""


@final
@dataclass(frozen=True)
class UniformTimes(TrainingTimes):
    """Uniform on [t_min, t_max] (Song et al. 2021, equation 7)."""

    def sample(self, sde: SDE, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        u = _stratified(batch_size, device, generator)
        return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


@final
@dataclass(frozen=True)
class DiscreteTimes(TrainingTimes):
    """The levels t_max i / N, i = 1 .. N = `num_levels`, of a chain, equally likely (Ho et al. 2020, algorithm 1)."""

    num_levels: int = 1000

    def __post_init__(self) -> None:
        require(self.num_levels >= 1, f"num_levels={self.num_levels}: need at least 1")

    def sample(self, sde: SDE, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        level = (_stratified(batch_size, device, generator) * self.num_levels).floor() + 1
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

    def sample(self, sde: SDE, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        rung = (_stratified(batch_size, device, generator) * self.num_levels).floor()
        share = rung.clamp(max=self.num_levels - 1) / (self.num_levels - 1)
        return (sde.t_min + (sde.t_max - sde.t_min) * share).clamp(sde.t_min, sde.t_max)


@final
@dataclass(frozen=True)
class LogNormalNoiseLevels(TrainingTimes):
    """log(sigma / alpha) ~ N(mean, std^2), kept within the SDE's range (Karras et al. 2022, table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, f"std={self.std}: must be positive")

    def sample(self, sde: SDE, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        u = _stratified(batch_size, device, generator).clamp(1e-6, 1 - 1e-6)
        log_noise_level = self.mean + self.std * torch.special.ndtri(u)
        return sde.time(-2 * log_noise_level).clamp(sde.t_min, sde.t_max)


class Weighting(ABC):
    """w of |D - x_0|^2."""

    @abstractmethod
    def __call__(self, sde: SDE, level: Level) -> Tensor:
        """The weight at each time of a level of an SDE."""


@final
@dataclass(frozen=True)
class NoiseWeighting(Weighting):
    """(alpha / sigma)^2."""

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class DenoisedWeighting(Weighting):
    """1."""

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return torch.ones_like(level.alpha)


@final
@dataclass(frozen=True)
class VelocityWeighting(Weighting):
    """1 + (alpha / sigma)^2."""

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return 1 + (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """1 / sigma_data^2 + (alpha / sigma)^2."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.sigma_data < math.inf, f"sigma_data={self.sigma_data}: must be positive and finite")

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return 1 / self.sigma_data**2 + (level.alpha / level.sigma) ** 2


@final
@dataclass(frozen=True)
class MinSNRWeighting(Weighting):
    """min((alpha / sigma)^2, gamma)."""

    gamma: float = 5.0  # Hang et al. 2023, section 4

    def __post_init__(self) -> None:
        require(self.gamma > 0, f"gamma={self.gamma}: must be positive")

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return ((level.alpha / level.sigma) ** 2).clamp(max=self.gamma)


@final
@dataclass(frozen=True)
class LikelihoodWeighting(Weighting):
    """g^2 alpha^2 / sigma^4."""

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return (sde.diffusion(level.t) / level.sigma * (level.alpha / level.sigma)) ** 2


@final
@dataclass(frozen=True)
class FlowWeighting(Weighting):
    """(g^2 alpha / (2 sigma^2))^2."""

    def __call__(self, sde: SDE, level: Level) -> Tensor:
        return (0.5 * (sde.diffusion(level.t) / level.sigma) ** 2 * level.alpha) ** 2


class Objective(ABC):
    """What a step of training minimises. Calling it returns one loss a sample, `(B,)`; average it for a step."""

    @abstractmethod
    def draw(
        self, sde: SDE, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Times `(B,)` and noise `(B, *)` for a batch of `shape`, float32."""

    @abstractmethod
    def at(self, model: NetworkScoreModel, x_0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """The loss of each sample at given t `(B,)` and eps `(B, *shape)`."""

    @final
    def __call__(
        self,
        model: NetworkScoreModel,
        x_0: Tensor,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws t and eps and returns the loss of each sample.

        Args:
            model: the model in training.
            x_0: clean data in the model's units, `(B, *shape)`.
            cond: labels of the batch, or None.
            generator: source of t and eps, on the device of x_0; the global one if None.
        """
        t, eps = self.draw(model.sde, tuple(x_0.shape), x_0.device, generator)
        return self.at(model, x_0, t.to(x_0.dtype), eps.to(x_0.dtype), cond)


@final
@dataclass(frozen=True)
class DenoisingObjective(Objective):
    """Denoising score matching: times, weight, and the network's own target. A learned path is taken as it is."""

    times: TrainingTimes = field(default_factory=UniformTimes)
    weighting: Weighting = field(default_factory=NoiseWeighting)

    def draw(
        self, sde: SDE, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        t = self.times.sample(sde, shape[0], device, generator)
        return t, torch.randn(shape, device=device, generator=generator)

    def at(self, model: NetworkScoreModel, x_0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """The loss of each sample at given t `(B,)` and eps `(B, *shape)`: w(t) |D - x_0|^2 / dim."""
        with torch.no_grad():  # a path with weights would lower this loss by going where it is low
            level = model.sde.level(t)
            weight = self.weighting(model.sde, level) * model.parametrization.c_out(level) ** 2
        return weight * _squared_error(model, x_0, level, eps, cond)


@final
@dataclass(frozen=True)
class VariationalObjective(Objective):
    """An upper bound of -log p(x_0) / dim in nats, at one uniform time a sample (`scoresde.bounds`).

    Prior and reconstruction at the ends, and gamma = -log_snr between them,

        (|alpha_T x_0|^2 / (2 sigma_T^2)  +  dim/2 log(2 pi e (sigma/alpha)^2 at t_min)
         +  (t_max - t_min)/2 gamma'(t) |eps - eps_hat|^2) / dim,

    the continuous-time loss of Kingma et al. 2021, section 5; gamma' = (g / sigma)^2. On a fixed path the first two do
    not depend on the model, and the third is half of `LikelihoodWeighting`'s loss times t_max - t_min. The ends of a
    `LearnedVPSDE` are trained with it, and its shape so that the third varies least.
    """

    def draw(
        self, sde: SDE, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        t = UniformTimes().sample(sde, shape[0], device, generator)
        return t, torch.randn(shape, device=device, generator=generator)

    def at(self, model: NetworkScoreModel, x_0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None = None) -> Tensor:
        """The bound for each sample, in nats a dimension, at given t `(B,)` and eps `(B, *shape)`."""
        sde, dim = model.sde, x_0[0].numel()
        with shape_gradient() as losses:  # see `scoresde.learned_sde`
            level = sde.level(t)
            slope = (sde.diffusion(t) / level.sigma) ** 2
        weight = slope * (model.parametrization.c_out(level) / level.noise_level) ** 2
        diffusion = 0.5 * (sde.t_max - sde.t_min) * weight * _squared_error(model, x_0, level, eps, cond)
        losses.append(diffusion.detach())
        first, last = (sde.level(torch.full_like(t[0], end)) for end in (sde.t_min, sde.t_max))
        return (prior_cost(x_0, last) + reconstruction_cost(dim, first)) / dim + diffusion


def _squared_error(model: NetworkScoreModel, x_0: Tensor, level: Level, eps: Tensor, cond: Tensor | None) -> Tensor:
    """|F - F*|^2 / dim of each sample `(B,)` at a level `(B,)`."""
    wide = level.match_rank(x_0)
    x_t = wide.alpha * x_0 + wide.sigma * eps
    error = model.output(x_t, level, cond) - model.parametrization.target(wide, x_0, eps)
    return error.flatten(1).square().mean(1)

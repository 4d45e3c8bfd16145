r"""Linear SDEs that carry data to noise.

Every forward process of the library is

    dx = f(t) x dt + g(t) dw,        x(0) ~ p_data,

with scalar f and g. It is linear, so a data point becomes a Gaussian at every time,

    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

and the moments of the SDE tie the four functions together:

    alpha' = f alpha,        (sigma^2)' = 2 f sigma^2 + g^2.

Either pair determines the other. An `SDE` owns all four in closed form, together with the inverse of its log
signal-to-noise ratio `log_snr(t) = 2 log(alpha / sigma)`, which falls strictly with t. Two SDEs with the same range of
log-SNR differ only by a rescaling of x and of t (Kingma et al. 2021, section 5.1), which is why a model trained under
one can be sampled under another.

Times lie in [t_min, t_max], where everything is finite; t = 0 stands for clean data (alpha 1, sigma 0) and appears
only as the last entry of a sampling grid.

This module holds the concept and user-defined paths; `scoresde.named_sdes` holds the SDEs of the literature.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde._stable import invert_decreasing, sqrt_one_minus_exp
from scoresde.errors import require


@final
@dataclass(frozen=True, slots=True)
class Level:
    """Times with their signal and noise scales: tensors of one shape, `()`, `(B,)`, or `(n,)` along a grid.

    Attributes:
        t: the times.
        alpha, sigma: of x_t given x_0, at each time.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def noise_level(self) -> Tensor:
        """sigma / alpha, the noise relative to the signal (the sigma of Karras et al.)."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> Tensor:
        """2 log(alpha / sigma)."""
        return 2 * (torch.log(self.alpha) - torch.log(self.sigma))

    def __len__(self) -> int:
        """The number of times."""
        return len(self.t)

    def __getitem__(self, index: int | slice | Tensor | tuple[slice, int]) -> Level:
        """Some of the times."""
        return Level(self.t[index], self.alpha[index], self.sigma[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Level:
        """A function of each of the three tensors."""
        return Level(function(self.t), function(self.alpha), function(self.sigma))

    def match_rank(self, x: Tensor) -> Level:
        """This level, shaped to multiply `x` of shape `(B, *)`."""
        return self.map(lambda part: match_rank(part, x))

    def to(self, device: torch.device, dtype: torch.dtype) -> Level:
        """This level on a device and in a type."""
        return self.map(lambda part: part.to(device=device, dtype=dtype))

    @staticmethod
    def join(function: Callable[[list[Tensor]], Tensor], levels: Sequence[Level]) -> Level:
        """Several levels as one, by a function such as `torch.cat` or `torch.stack`."""
        return Level(
            function([level.t for level in levels]),
            function([level.alpha for level in levels]),
            function([level.sigma for level in levels]),
        )

    @staticmethod
    def clean(dtype: torch.dtype = torch.float64) -> Level:
        """The level of clean data: time 0, alpha 1, sigma 0; tensors of shape `(1,)` on the host."""
        zero = torch.zeros(1, dtype=dtype)
        return Level(zero, torch.ones(1, dtype=dtype), zero)


def transition(s: Level, t: Level) -> tuple[Tensor, Tensor]:
    """(ratio, std) of x_t | x_s ~ N(ratio x_s, std^2 I) for s < t: alpha_t / alpha_s, sigma_t sqrt(1 - r^2).

    r = (sigma_s alpha_t) / (alpha_s sigma_t) is the ratio of the noise levels, and r^2 = e^{log_snr(t) - log_snr(s)}.
    """
    return t.alpha / s.alpha, t.sigma * sqrt_one_minus_exp(t.log_snr - s.log_snr)


def bridge(s: Level, t: Level) -> tuple[Tensor, Tensor, Tensor]:
    """(on_x0, on_xt, std) of x_s | x_t, x_0 ~ N(on_x0 x_0 + on_xt x_t, std^2 I) for s < t.

    The mean is alpha_s x_0 + sigma_s r eps with eps = (x_t - alpha_t x_0) / sigma_t, and std = sigma_s sqrt(1 - r^2).
    """
    log_r2 = t.log_snr - s.log_snr
    on_xt = s.sigma / t.sigma * torch.exp(0.5 * log_r2)
    return -s.alpha * torch.expm1(log_r2), on_xt, s.sigma * sqrt_one_minus_exp(log_r2)


class SDE(ABC):
    """A linear SDE and its Gaussian path. All methods take and return tensors of any shape, element by element.

    Attributes:
        t_min: the earliest time at which a score is evaluated.
        t_max: the time of the prior, at which `alpha(t_max)` of the data is left.
        t_end: end of the default sampling grids, before the last step to clean data ("sampling epsilon").
    """

    t_min: float
    t_max: float
    t_end: float

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale of x_t given x_0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t given x_0."""

    @abstractmethod
    def drift_coef(self, t: Tensor) -> Tensor:
        """f(t) of the drift f(t) x."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The time at which `log_snr(t)` has this value: the inverse of `log_snr`."""

    @final
    def level(self, t: Tensor) -> Level:
        """Time, alpha and sigma together."""
        return Level(t, self.alpha(t), self.sigma(t))

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """2 log(alpha / sigma), strictly decreasing in t."""
        return self.level(t).log_snr

    @final
    def noise_level(self, t: Tensor) -> Tensor:
        """sigma / alpha."""
        return self.level(t).noise_level

    @final
    def diffuse(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps, for `x_0` and `eps` of shape `(B, *)` and `t` of shape `()` or `(B,)`."""
        level = self.level(t).match_rank(x_0)
        return level.alpha * x_0 + level.sigma * eps

    @final
    def restricted(self, t_min: float, t_max: float) -> SDE:
        """The same path over the times from t_min to t_max."""
        part = copy.copy(self)
        set_times(part, t_min, t_max, min(self.t_end, t_max))
        return part

    @final
    def span(self) -> Level:
        """The levels of t_max and t_min, parts `(2,)`, float64 on the host."""
        return self.level(torch.tensor([self.t_max, self.t_min], dtype=torch.float64))

    @final
    def at_noise_level(self, noise_level: Tensor) -> Level:
        """The levels with these sigma / alpha; those outside the SDE's range become its ends."""
        return self.level(self.time(-2 * torch.log(noise_level)).clamp(self.t_min, self.t_max))

    @final
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, sigma(t_max)^2 I)."""
        return self.span().sigma[0].item()

    @final
    def prior_log_prob(self, x_T: Tensor, sigma_data: float = 0.0) -> Tensor:
        """log N(x_T; 0, (alpha^2 sigma_data^2 + sigma^2) I) at t_max in nats: `(B, *)` to `(B,)`.

        Args:
            x_T: `(B, *)`.
            sigma_data: deviation of the data that are left at t_max; 0 for the prior that samplers draw from.
        """
        last = self.span()[0]
        std = math.hypot(last.alpha.item() * sigma_data, last.sigma.item())
        squares = (x_T / std).flatten(1).square().sum(1)
        return -0.5 * squares - x_T[0].numel() * (math.log(std) + 0.5 * math.log(2 * math.pi))


def set_times(sde: SDE, t_min: float, t_max: float, t_end: float, *, low: float = 0.0, high: float = math.inf) -> None:
    """Sets the times of an SDE, which may be a frozen dataclass; a t_end below t_min becomes t_min.

    Raises:
        UsageError: unless low < t_min <= t_end <= t_max <= high and t_min < t_max, all finite.
    """
    t_end = max(t_end, t_min)
    require(
        low < t_min < t_max <= high and t_end <= t_max and math.isfinite(t_max),
        f"t_min={t_min}, t_end={t_end}, t_max={t_max} of {type(sde).__name__}: "
        f"need {low} < t_min <= t_end <= t_max <= {high} and t_min < t_max, all finite",
    )
    for name, value in {"t_min": t_min, "t_max": t_max, "t_end": t_end}.items():
        object.__setattr__(sde, name, value)


@final
@dataclass(frozen=True)
class GaussianPathSDE(SDE):
    """A user-defined path: alpha and sigma are given, and f, g and the inverse of the log-SNR are derived.

    f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2 by automatic differentiation, the time of a log-SNR by
    bisection. The two functions take and return tensors; alpha / sigma must fall strictly from t_min to t_max.

    Example:
        GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    """

    alpha_of: Callable[[Tensor], Tensor]
    sigma_of: Callable[[Tensor], Tensor]
    t_min: float
    t_max: float
    t_end: float

    def __init__(
        self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], t_min: float, t_max: float
    ) -> None:
        object.__setattr__(self, "alpha_of", alpha)
        object.__setattr__(self, "sigma_of", sigma)
        set_times(self, t_min, t_max, t_end=t_min)
        log_snr = self.log_snr(torch.linspace(t_min, t_max, 1001, dtype=torch.float64))
        require(
            bool(log_snr.isfinite().all() and (log_snr.diff() < 0).all()),
            f"alpha, sigma: log(alpha/sigma) must be finite and fall strictly over [{t_min}, {t_max}]; narrow them",
        )

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_of(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_of(t)

    def drift_coef(self, t: Tensor) -> Tensor:
        alpha, slope = _value_and_slope(self.alpha_of, t)
        return slope / alpha

    def diffusion(self, t: Tensor) -> Tensor:
        sigma, slope = _value_and_slope(self.sigma_of, t)
        return torch.sqrt(2 * sigma * (slope - self.drift_coef(t) * sigma))

    def time(self, log_snr: Tensor) -> Tensor:
        return invert_decreasing(self.log_snr, log_snr, self.t_min, self.t_max)


def _value_and_slope(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """A function of time and its derivative, element by element; works in every gradient mode."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = function(t)
        slope = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
    return value.detach(), slope

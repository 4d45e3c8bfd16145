r"""Linear SDEs that carry data to noise.

Every forward process of the library is

    dx = f(t) x dt + g(t) dw,        x(0) ~ p_data,

with scalar f and g. It is linear, so what it makes of a data point is Gaussian at every time,

    x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I),

and the moments of the SDE tie the four functions together:

    alpha' = f alpha,        (sigma^2)' = 2 f sigma^2 + g^2.

Either pair determines the other. An `SDE` owns all four in closed form, together with the inverse of its log
signal-to-noise ratio `log_snr(t) = 2 log(alpha / sigma)`, which falls strictly with t. Two SDEs with the same range of
log-SNR differ only by a rescaling of x and of t (Kingma et al. 2021, section 5.1), which is why a model trained under
one can be sampled under another.

Times lie in [t_min, t_max], where everything is finite; t = 0 stands for clean data (alpha 1, sigma 0) and appears
only as the last entry of a sampling grid.

Sources: VP, sub-VP and VE: Song et al. 2021 (arXiv:2011.13456), equations 30 to 32 and appendix B; cosine: Nichol and
Dhariwal 2021 (arXiv:2102.09672), equation 17; EDM: Karras et al. 2022 (arXiv:2206.00364), table 1; rectified flow:
Liu et al. 2022 (arXiv:2209.03003); DDPM's table: Ho et al. 2020 (arXiv:2006.11239), section 4.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde._shape import match_rank
from scoresde._stable import invert_decreasing, sqrt_one_minus_exp
from scoresde.errors import require


class Level(NamedTuple):
    """A time with its signal and noise scales: three tensors of one shape, `()` or `(B,)` (or `(n,)` along a grid)."""

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

    def match_rank(self, x: Tensor) -> Level:
        """This level, shaped to multiply `x` of shape `(B, *)`."""
        return Level(*(match_rank(part, x) for part in self))

    def at(self, index: int | slice) -> Level:
        """Some of the times of a grid."""
        return Level(*(part[index] for part in self))

    def like(self, x: Tensor) -> Level:
        """This level on the device and in the type of `x`."""
        return Level(*(part.to(device=x.device, dtype=x.dtype) for part in self))


class SDE(ABC):
    """A linear SDE and its Gaussian path. All methods take and return tensors of any shape, element by element.

    Attributes:
        t_min: the earliest time at which a score is asked for.
        t_max: the time of the prior, where what is left of the data is `alpha(t_max)`.
    """

    t_min: float
    t_max: float

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
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, sigma(t_max)^2 I)."""
        return self.sigma(torch.tensor(self.t_max, dtype=torch.float64)).item()

    @final
    def prior_log_prob(self, x_T: Tensor) -> Tensor:
        """log N(x_T; 0, sigma(t_max)^2 I) in nats, one number per sample: `(B, *)` to `(B,)`."""
        std = self.prior_std()
        squares = (x_T / std).flatten(1).square().sum(1)
        return -0.5 * squares - x_T[0].numel() * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _check_times(sde: SDE, low: float, high: float) -> None:
    require(
        low < sde.t_min < sde.t_max <= high,
        f"t_min={sde.t_min}, t_max={sde.t_max} of {type(sde).__name__}: need {low} < t_min < t_max <= {high}",
    )


class _LinearBeta(NamedTuple):
    """beta(t) = beta_min + t (beta_max - beta_min), its integral b(t), and the inverse of b."""

    beta_min: float
    beta_max: float

    def check(self) -> None:
        require(
            0 < self.beta_min <= self.beta_max,
            f"beta_min={self.beta_min}, beta_max={self.beta_max}: need 0 < beta_min <= beta_max",
        )

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (0.5 * (self.beta_max - self.beta_min)))

    def time(self, integral: Tensor) -> Tensor:
        """The root t >= 0 of a quadratic, written without cancellation."""
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)


@final
@dataclass(frozen=True)
class VPSDE(SDE):
    """Variance preserving: f = -beta/2, g = sqrt(beta), beta(t) = beta_min + t (beta_max - beta_min).

    With b(t) the integral of beta: alpha = e^{-b/2}, sigma^2 = 1 - e^{-b}.
    """

    beta_min: float = 0.1  # Song et al. 2021, appendix C
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self._beta.check()
        _check_times(self, 0, math.inf)

    @property
    def _beta(self) -> _LinearBeta:
        return _LinearBeta(self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._beta.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return sqrt_one_minus_exp(-self._beta.integral(t))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta.rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta.rate(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return self._beta.time(F.softplus(-log_snr))


@final
@dataclass(frozen=True)
class SubVPSDE(SDE):
    """Sub-VP: the drift of VP, g^2 = beta (1 - e^{-2b}); alpha = e^{-b/2}, sigma = 1 - e^{-b}.

    sigma falls linearly with t, not with its square root, so t_min is larger than that of VP: sigma(t_min) is 1e-4.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        self._beta.check()
        _check_times(self, 0, math.inf)

    @property
    def _beta(self) -> _LinearBeta:
        return _LinearBeta(self.beta_min, self.beta_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._beta.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._beta.integral(t))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta.rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta.rate(t)) * sqrt_one_minus_exp(-2 * self._beta.integral(t))

    def time(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = e^{b/2} - e^{-b/2} = 2 sinh(b/2)
        return self._beta.time(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@final
@dataclass(frozen=True)
class VESDE(SDE):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, g = sigma sqrt(2 log(ratio)).

    `sigma_max` should be about the largest distance between two data points (Song and Ermon 2020, technique 1).
    """

    sigma_min: float = 0.01  # Song et al. 2021, appendix C
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: need 0 < sigma_min < sigma_max",
        )
        _check_times(self, 0, math.inf)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def drift_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio


@final
@dataclass(frozen=True)
class CosineSDE(SDE):
    """Variance preserving with alpha = cos(u) / cos(u_0), u = (t + s)/(1 + s) pi/2, u_0 = u(0).

    alpha reaches 0 at t = 1, where the log-SNR is infinite, so t_max stays below it.
    """

    s: float = 0.008  # Nichol and Dhariwal 2021, section 3.2
    t_min: float = 1e-4
    t_max: float = 0.995

    def __post_init__(self) -> None:
        require(0 < self.s < 1, f"s={self.s}: need 0 < s < 1")
        _check_times(self, 0, math.nextafter(1, 0))

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    @property
    def _u_0(self) -> float:
        return self._rate * self.s

    def _u(self, t: Tensor) -> Tensor:
        return self._u_0 + self._rate * t

    def alpha(self, t: Tensor) -> Tensor:
        # cos(u) = sin(pi/2 - u), and pi/2 - u = rate (1 - t) keeps its digits near t = 1
        return torch.sin(self._rate * (1 - t)) / math.cos(self._u_0)

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - cos^2(u)/cos^2(u_0) = sin(u - u_0) sin(u + u_0) / cos^2(u_0)
        return torch.sqrt(torch.sin(self._rate * t) * torch.sin(self._u(t) + self._u_0)) / math.cos(self._u_0)

    def drift_coef(self, t: Tensor) -> Tensor:
        return -self._rate / torch.tan(self._rate * (1 - t))

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self.drift_coef(t))

    def time(self, log_snr: Tensor) -> Tensor:
        cos_0, sin_0 = math.cos(self._u_0), math.sin(self._u_0)
        sin = torch.sqrt(sin_0**2 + cos_0**2 * torch.sigmoid(-log_snr))
        cos = cos_0 * torch.sqrt(torch.sigmoid(log_snr))
        return (torch.atan2(sin, cos) - self._u_0) / self._rate


@final
@dataclass(frozen=True)
class EDMSDE(SDE):
    """Time is the noise level itself: alpha = 1, sigma = t, g = sqrt(2 t)."""

    t_min: float = 0.002  # Karras et al. 2022, table 1
    t_max: float = 80.0

    def __post_init__(self) -> None:
        _check_times(self, 0, math.inf)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def drift_coef(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)


@final
@dataclass(frozen=True)
class RectifiedFlowSDE(SDE):
    """The straight path alpha = 1 - t, sigma = t: f = -1/(1 - t), g^2 = 2 t / (1 - t). Singular at t = 1."""

    t_min: float = 1e-3
    t_max: float = 0.995

    def __post_init__(self) -> None:
        _check_times(self, 0, math.nextafter(1, 0))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def drift_coef(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


@final
@dataclass(frozen=True)
class DiscreteVPSDE(SDE):
    """DDPM's chain of `num_levels` betas as a VP SDE: level i is the time i / num_levels.

    alpha^2 at level i is the product of (1 - beta_j), j <= i, exactly. Between two levels beta(t) is constant, so the
    integral b(t) is the straight line between its values -sum log(1 - beta_j): every sampler may step anywhere.
    """

    beta_start: float = 1e-4  # Ho et al. 2020, section 4
    beta_end: float = 0.02
    num_levels: int = 1000
    _tables: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"beta_start={self.beta_start}, beta_end={self.beta_end}: need 0 < beta_start <= beta_end < 1",
        )
        require(self.num_levels >= 2, f"num_levels={self.num_levels}: need at least 2")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.num_levels

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    def betas(self) -> Tensor:
        """The chain's variances beta_1 .. beta_N, float64, shape `(num_levels,)`."""
        return torch.linspace(self.beta_start, self.beta_end, self.num_levels, dtype=torch.float64)

    def _integrals(self, like: Tensor) -> Tensor:
        """b at the levels 0 .. N, on the device and in the type of `like` (made once for each)."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            knots = F.pad(-torch.log1p(-self.betas()).cumsum(0), (1, 0))
            self._tables[key] = knots.to(device=like.device, dtype=like.dtype)
        return self._tables[key]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Left knot, its offset in [0, 1] and the rise of b over the segment that holds t."""
        position = t * self.num_levels
        left = position.ceil().long().sub(1).clamp(0, self.num_levels - 1)
        knots = self._integrals(t)
        return knots[left], position - left, knots[left + 1] - knots[left]

    def _integral(self, t: Tensor) -> Tensor:
        start, offset, rise = self._segment(t)
        return start + offset * rise

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return sqrt_one_minus_exp(-self._integral(t))

    def drift_coef(self, t: Tensor) -> Tensor:
        return -0.5 * self.num_levels * self._segment(t)[2]

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.num_levels * self._segment(t)[2])

    def time(self, log_snr: Tensor) -> Tensor:
        integral = F.softplus(-log_snr)
        knots = self._integrals(integral)
        left = (torch.searchsorted(knots, integral) - 1).clamp(0, self.num_levels - 1)
        return (left + (integral - knots[left]) / (knots[left + 1] - knots[left])) / self.num_levels


@final
@dataclass(frozen=True)
class GaussianPathSDE(SDE):
    """A path of the user's own: give alpha and sigma, and f, g and the inverse log-SNR are derived.

    f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2 by forward-mode differentiation, the time of a log-SNR by
    bisection. The two functions take and return tensors; alpha / sigma must fall strictly from t_min to t_max.

    Example:
        GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    """

    alpha_of: Callable[[Tensor], Tensor]
    sigma_of: Callable[[Tensor], Tensor]
    t_min: float
    t_max: float

    def __init__(
        self, alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor], t_min: float, t_max: float
    ) -> None:
        for name, value in {"alpha_of": alpha, "sigma_of": sigma, "t_min": t_min, "t_max": t_max}.items():
            object.__setattr__(self, name, value)
        _check_times(self, 0, math.inf)
        log_snr = self.log_snr(torch.linspace(t_min, t_max, 1001, dtype=torch.float64))
        require(
            bool(log_snr.isfinite().all() and (log_snr.diff() < 0).all()),
            f"alpha, sigma: log(alpha/sigma) must be finite and fall strictly over [{t_min}, {t_max}]; narrow the range",
        )

    def alpha(self, t: Tensor) -> Tensor:
        return self.alpha_of(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_of(t)

    def drift_coef(self, t: Tensor) -> Tensor:
        alpha, slope = torch.func.jvp(self.alpha_of, (t,), (torch.ones_like(t),))
        return slope / alpha

    def diffusion(self, t: Tensor) -> Tensor:
        sigma, slope = torch.func.jvp(self.sigma_of, (t,), (torch.ones_like(t),))
        return torch.sqrt(2 * sigma * (slope - self.drift_coef(t) * sigma))

    def time(self, log_snr: Tensor) -> Tensor:
        return invert_decreasing(self.log_snr, log_snr, self.t_min, self.t_max)

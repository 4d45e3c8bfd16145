"""The SDEs of the literature, in closed form.

VE, VP and sub-VP: Song et al. 2021 (arXiv:2011.13456), equations 9, 11 and 12, with the kernels of equation 29 and the
constants of appendix C. Cosine: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 17. EDM: Karras et al. 2022
(arXiv:2206.00364), table 1. Rectified flow: Liu et al. 2022 (arXiv:2209.03003). DDPM's chain: Ho et al. 2020
(arXiv:2006.11239), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde._stable import sqrt_one_minus_exp
from scoresde.errors import require
from scoresde.sde import SDE, set_times

BELOW_ONE = math.nextafter(1, 0)  # largest t_max of a path that is singular at 1


class _LinearBeta(NamedTuple):
    """beta(t) = beta_min + t (beta_max - beta_min), its integral b(t), and the inverse of b."""

    beta_min: float
    beta_max: float

    def check(self) -> None:
        require(
            0 < self.beta_min <= self.beta_max < math.inf,
            f"beta_min={self.beta_min}, beta_max={self.beta_max}: need 0 < beta_min <= beta_max, finite",
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
    t_end: float = 1e-3  # Song et al. 2021, appendix C

    def __post_init__(self) -> None:
        self._beta.check()
        set_times(self, self.t_min, self.t_max, self.t_end)

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
        return self._beta.time(-F.logsigmoid(log_snr))


@final
@dataclass(frozen=True)
class SubVPSDE(SDE):
    """Sub-VP: the drift of VP, g^2 = beta (1 - e^{-2b}); alpha = e^{-b/2}, sigma = 1 - e^{-b}.

    Near 0 sigma is proportional to t, not to its square root: at t_end it is 1e-4.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        self._beta.check()
        set_times(self, self.t_min, self.t_max, self.t_end)

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
    t_end: float = 1e-5

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max < math.inf,
            f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: need 0 < sigma_min < sigma_max, finite",
        )
        set_times(self, self.t_min, self.t_max, self.t_end)

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

    alpha is 0 at t = 1, where the log-SNR is minus infinity, so t_max stays below 1.
    """

    s: float = 0.008  # Nichol and Dhariwal 2021, section 3.2
    t_min: float = 1e-4
    t_max: float = 0.995
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        require(0 < self.s < 1, f"s={self.s}: need 0 < s < 1")
        set_times(self, self.t_min, self.t_max, self.t_end, high=BELOW_ONE)

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
        cos_0 = math.cos(self._u_0)
        sin_0 = math.sin(self._u_0)
        sin = torch.sqrt(sin_0**2 + cos_0**2 * torch.sigmoid(-log_snr))
        cos = cos_0 * torch.sqrt(torch.sigmoid(log_snr))
        return (torch.atan2(sin, cos) - self._u_0) / self._rate


@final
@dataclass(frozen=True)
class EDMSDE(SDE):
    """Time is the noise level itself: alpha = 1, sigma = t, g = sqrt(2 t)."""

    t_min: float = 0.002  # Karras et al. 2022, table 1
    t_max: float = 80.0
    t_end: float = 0.002

    def __post_init__(self) -> None:
        set_times(self, self.t_min, self.t_max, self.t_end)

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
    t_end: float = 1e-3

    def __post_init__(self) -> None:
        set_times(self, self.t_min, self.t_max, self.t_end, high=BELOW_ONE)

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


class _Chain:
    """The integral b of beta at the levels 0 .. N of a chain, and its rise after each level but the last.

    The rises are computed in float64: the difference of two float32 values of b would lose digits.
    """

    def __init__(self, betas: Tensor) -> None:
        self.betas = betas
        rises = -torch.log1p(-betas)
        self._table = torch.stack([F.pad(rises.cumsum(0), (1, 0)), F.pad(rises, (0, 1))])
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """b and its rises, `(N + 1,)` each, on the device and in the type of `x`; each copy is made once."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = self._table.to(device=x.device, dtype=x.dtype)
        knots, rises = self._copies[key]
        return knots, rises


@final
@dataclass(frozen=True, init=False)
class DiscreteVPSDE(SDE):
    """DDPM's chain of N betas as a VP SDE: level i is the time i / N.

    alpha^2 at level i is exactly the product of (1 - beta_j), j <= i. Between two levels beta(t) is constant, so b(t)
    is linear between its values -sum log(1 - beta_j), and a sampler can step to any time.

    Args:
        beta_start, beta_end, num_levels: of a chain whose betas are evenly spaced.
        betas: all variances beta_1 .. beta_N of any other chain; the three above then follow from them.
        t_min, t_max, t_end: as in every `SDE`; t_min and t_end are 1 / N if None.

    Example:
        DiscreteVPSDE(betas=torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # Rombach et al. 2022, their code
    """

    beta_start: float
    beta_end: float
    num_levels: int
    betas: tuple[float, ...] = field(repr=False)
    t_min: float
    t_max: float
    t_end: float
    _chain: _Chain = field(repr=False, compare=False)

    def __init__(
        self,
        beta_start: float = 1e-4,  # Ho et al. 2020, section 4
        beta_end: float = 0.02,
        num_levels: int = 1000,
        betas: Sequence[float] | Tensor = (),
        t_min: float | None = None,
        t_max: float = 1.0,
        t_end: float | None = None,
    ) -> None:
        if len(betas):
            chain = torch.as_tensor(betas, dtype=torch.float64)
            require(chain.ndim == 1, f"betas of shape {tuple(chain.shape)}: need (num_levels,)")
            beta_start = chain[0].item()
            beta_end = chain[-1].item()
            num_levels = len(chain)
        else:
            require(
                0 < beta_start <= beta_end < 1,
                f"beta_start={beta_start}, beta_end={beta_end}: need 0 < beta_start <= beta_end < 1",
            )
            require(num_levels >= 2, f"num_levels={num_levels}: need at least 2")
            chain = torch.linspace(beta_start, beta_end, num_levels, dtype=torch.float64)
        require(num_levels >= 2, f"betas of length {num_levels}: need at least 2")
        require(bool(((chain > 0) & (chain < 1)).all()), "betas: all must lie between 0 and 1")
        values = {
            "beta_start": beta_start,
            "beta_end": beta_end,
            "num_levels": num_levels,
            "betas": tuple(chain.tolist()) if len(betas) else (),
            "_chain": _Chain(chain),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        first = 1 / num_levels
        set_times(self, first if t_min is None else t_min, t_max, first if t_end is None else t_end, high=1.0)

    def variances(self) -> Tensor:
        """beta_1 .. beta_N, float64, `(num_levels,)`."""
        return self._chain.betas.clone()

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b at the left knot, the offset from it in [0, 1], and the rise of b over the segment that holds t."""
        position = t * self.num_levels
        slack = 4 * torch.finfo(t.dtype).eps * self.num_levels  # a level's time ends the segment below it
        left = (position - slack).ceil().long().sub(1).clamp(0, self.num_levels - 1)
        knots, rises = self._chain.like(t)
        return knots[left], position - left, rises[left]

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
        integral = -F.logsigmoid(log_snr)
        knots, rises = self._chain.like(integral)
        left = (torch.searchsorted(knots, integral) - 1).clamp(0, self.num_levels - 1)
        return (left + (integral - knots[left]) / rises[left]) / self.num_levels


def cosine_betas(num_levels: int = 1000, s: float = 0.008, largest: float = 0.999) -> Tensor:
    """The betas of Nichol and Dhariwal 2021, equation 17, for a `DiscreteVPSDE`, float64, `(num_levels,)`.

    The product of 1 - beta_j, j <= i, is f(i / N) / f(0) with f(t) = cos^2((t + s) / (1 + s) pi / 2), but no beta is
    above the largest.
    """
    t = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64)
    kept = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=largest)

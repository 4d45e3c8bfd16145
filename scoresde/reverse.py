r"""The variance of a reverse step.

A step of DDPM's chain goes from x_t to x_s ~ N(mean, Sigma), where the mean is that of the bridge with the denoiser D
in place of x_0. Two variances are fixed: betatilde, the bridge's own, and beta, that of the forward step. With the
ratio r of the noise levels of s and t (`scoresde.sde`), betatilde = sigma_s^2 (1 - r^2) and beta = sigma_t^2 (1 - r^2),
so that

    log(beta / betatilde) = 2 log(sigma_t / sigma_s).

Under VP they are the best ones for data of variance 0 and 1. Between them lie, by

    growth = log(Sigma / betatilde),    posterior: 0,    beta: log(beta / betatilde),

the learned variance of Nichol and Dhariwal 2021 (equation 15), Sigma = exp(v log beta + (1 - v) log betatilde), where v
is an output of the network for each entry, growth = v log(beta / betatilde); and the measured one of Bao et al. 2022
(Analytic-DPM, theorem 1). Of all isotropic variances the best is

    Sigma = betatilde + on_x0^2 E|x_0 - D|^2 / dim,

on_x0 the factor of x_0 in the bridge's mean. They estimate the error by sigma^2 / alpha^2 (1 - E|eps_hat|^2 / dim). The
two are equal if D is exact. The error itself varies less where noise is large, and holds for a D that is not exact. It
is kept from 0 to sigma^2 / alpha^2, the error of D = x_t / alpha, as theirs is: Sigma is then between betatilde and
beta (alpha_s / alpha_t)^2, which data of a very large variance have.

The last step, from the first level above 0 to clean data, draws no noise; but the decoder of a bound has a variance. It
is between (sigma/alpha)^2, which is beta in units of x_0, and (sigma/alpha)^2 (1 - r^2), the betatilde, in units of
x_0, of the step that arrived at this level: betatilde of a step to clean data would be 0. In the published code, too,
log betatilde at t = 1 is that of t = 2. If no step arrived, both are (sigma/alpha)^2. The measured variance of the
decoder is the error.

The error is not the same for all entries of a sample. Measured in intervals of the values of D it is a variance for
each entry, as the learned one is, without training (`MeasuredVariance.edges`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde._by_level import Values, check_by_level, interpolate
from scoresde._shape import match_rank
from scoresde.errors import require
from scoresde.sde import Level

NEAREST = 1e-6  # least rise of the log-SNR over a step, for its logarithm


def variance_range(s: Level, t: Level) -> Tensor:
    """log(beta / betatilde) of a step from t to s < t: 2 log(sigma_t / sigma_s)."""
    return 2 * (torch.log(t.sigma) - torch.log(s.sigma))


def step_cost(error: Tensor, growth: Tensor, s: Level, t: Level) -> Tensor:
    """KL(q(x_s | x_t, x_0) | N(mean, Sigma)) of each entry, nats.

    1/2 (growth + e^-growth - 1) + 1/2 (SNR(s) - SNR(t)) error^2 e^-growth.

    Args:
        error: D - x_0, `(B, *)`.
        growth: log(Sigma / betatilde); broadcasts against the error.
        s, t: the levels; broadcast against the error.
    """
    precision = torch.exp(s.log_snr) - torch.exp(t.log_snr)  # on_x0^2 / betatilde
    return 0.5 * (growth + torch.expm1(-growth)) + 0.5 * precision * error**2 * torch.exp(-growth)


def decoder_range(s: Level, t: Level) -> Tensor:
    """log of the ratio of the decoder's two variances at a level s, at which a step from t arrived: -log(1 - r^2)."""
    return -torch.log(-torch.expm1((t.log_snr - s.log_snr).clamp(max=-NEAREST)))


def decoder_log_prob(
    x_0: Tensor,
    mean: Tensor,
    std: Tensor,
    bin_width: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
) -> Tensor:
    """Log mass of N(mean, std^2) in the bin of each entry of x_0, `(B, *)`, nats (Ho et al. 2020, equation 13).

    Args:
        x_0: data on the levels low, low + bin_width, .., high.
        mean: `(B, *)`.
        std: `(B,)`, or `(B, *)`.
        bin_width, low, high: as in `scoresde.bounds.ddpm_bound`.
    """
    x = x_0.double()
    std = match_rank(std.double(), x_0)
    lower = torch.where(x < low + 0.5 * bin_width, -math.inf, (x - 0.5 * bin_width - mean) / std)
    upper = torch.where(x > high - 0.5 * bin_width, math.inf, (x + 0.5 * bin_width - mean) / std)
    # bins in the upper tail are reflected to the lower one, where log_ndtr keeps its digits
    reflect = lower > 0
    smaller = torch.special.log_ndtr(torch.where(reflect, -upper, lower))
    larger = torch.special.log_ndtr(torch.where(reflect, -lower, upper))
    return larger + torch.log(-torch.expm1(smaller - larger))


@final
@dataclass(frozen=True)
class MeasuredVariance:
    """The error of a denoiser at some levels, and the best variance that follows for every step.

    Between the levels the share is linear in the log-SNR. It is one number for all entries of a sample, or one for each
    interval of the values of D: where an entry of an image is black for certain, its error is small.

    Attributes:
        log_snr: of the levels, rising.
        share: (alpha / sigma)^2 E|x_0 - D|^2 / dim at each: the error as a share of the noise; with edges one for each
            interval.
        edges: between intervals of the values of D, rising; () for one number.
    """

    log_snr: tuple[float, ...]
    share: Values
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_by_level(self.log_snr, self.share, "share of MeasuredVariance")
        widths = {len(part) if isinstance(part, tuple) else 0 for part in self.share}
        need = len(self.edges) + 1 if self.edges else 0
        require(
            widths == {need} and all(low < high for low, high in itertools.pairwise(self.edges)),
            f"edges={self.edges} of MeasuredVariance: need rising numbers, and at each level a share for each interval",
        )

    def growth(self, s: Level, t: Level) -> Tensor:
        """log(Sigma / betatilde) of the steps from t to s < t: log(1 + (SNR(s) / SNR(t) - 1) share).

        Of the shape of the levels; with edges `(*, intervals)`.
        """
        ratio = torch.expm1(s.log_snr - t.log_snr)
        share = self.at(t)
        return torch.log1p(ratio.reshape(ratio.shape + (1,) * (share.ndim - ratio.ndim)) * share)

    def at(self, level: Level) -> Tensor:
        """The share at levels, at most 1; with edges `(*, intervals)`."""
        return interpolate(self.log_snr, self.share, level).clamp(max=1)

    def of_entries(self, values: Tensor, x0_hat: Tensor) -> Tensor:
        """What holds for each entry of D, to broadcast against it.

        Args:
            values: of one level `()` or of each sample's `(B,)`; with edges `(intervals,)` or `(B, intervals)`.
            x0_hat: D, `(B, *)`.
        """
        if not self.edges:
            return match_rank(values, x0_hat)
        edges = torch.tensor(self.edges, dtype=x0_hat.dtype, device=x0_hat.device)
        interval = torch.bucketize(x0_hat.contiguous(), edges)
        if values.ndim == 1:
            return values[interval]
        return values.gather(1, interval.flatten(1)).reshape(x0_hat.shape)


def check_variance(variance: object) -> None:
    """Raises `UsageError` for a variance that no reverse step has."""
    require(
        isinstance(variance, MeasuredVariance) or variance in ("posterior", "beta", "learned"),
        f"variance={variance!r}: need 'posterior', 'beta', 'learned' or a MeasuredVariance ('pilot' on the command "
        "line)",
    )

r"""Distributions whose noisy marginals are known exactly.

If x_0 ~ sum_k w_k N(mu_k, C_k), then x_t = alpha x_0 + sigma eps ~ sum_k w_k N(alpha mu_k, alpha^2 C_k + sigma^2 I).
So density, score and the denoiser E[x_0 | x_t] have closed forms at every alpha and sigma, hence under every SDE. A set
of data points is the case C_k = 0: its denoiser is the one that a network of unlimited capacity would learn.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Self, final

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.errors import require


class Target(ABC):
    """A distribution over data of shape `shape`, seen through noise.

    `alpha` and `sigma` are tensors of shape `()` or `(B,)`; x has shape `(B, *shape)`.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws clean data, `(num_samples, *shape)`."""

    @abstractmethod
    def log_prob(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log density of alpha x_0 + sigma eps at x_t in nats, `(B,)`."""

    @abstractmethod
    def denoise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | alpha x_0 + sigma eps = x_t]."""

    @property
    @abstractmethod
    def sigma_data(self) -> float:
        """Standard deviation of clean data over all entries."""

    @property
    @abstractmethod
    def _any_tensor(self) -> Tensor:
        """One of the distribution's own tensors."""

    @property
    @final
    def device(self) -> torch.device:
        """The device on which the distribution computes."""
        return self._any_tensor.device

    @property
    @final
    def dtype(self) -> torch.dtype:
        """The type in which it computes."""
        return self._any_tensor.dtype

    @final
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same distribution on a device and in a type."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Target):
                setattr(other, name, value.to(device=device, dtype=dtype))
        return other

    @final
    def score(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """grad log p(x_t) = (alpha E[x_0 | x_t] - x_t) / sigma^2 (Tweedie's formula)."""
        x0_hat = self.denoise(x_t, alpha, sigma)
        return (match_rank(alpha, x_t) * x0_hat - x_t) / match_rank(sigma, x_t) ** 2


@final
class GaussianMixture(Target):
    """sum_k w_k N(mu_k, C_k).

    Args:
        weights: `(K,)`, positive; normalised here.
        means: `(K, *shape)`.
        covariances: `(K,)` variances of isotropic components, `(K, *shape)` variances of each entry, or `(K, D, D)`
            matrices over the flattened data, D its size.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        components = len(means)
        self.shape = tuple(means.shape[1:])
        dim = math.prod(self.shape)
        require(weights.shape == (components,), f"weights of shape {tuple(weights.shape)}: need ({components},)")
        require(bool((weights > 0).all()), "weights: all must be positive; leave out components of weight 0")
        self.weights = (weights / weights.sum()).to(means)
        self.means = means.reshape(components, dim)
        self.rotations: Tensor | None = None  # rows are eigenvectors; None if the axes are the eigenvectors
        if covariances.shape == (components, dim, dim):
            self.variances, vectors = torch.linalg.eigh(covariances)
            self.rotations = vectors.mT
        elif covariances.shape == (components,):
            self.variances = covariances[:, None].expand(components, dim)
        else:
            require(
                covariances.shape == means.shape,
                f"covariances of shape {tuple(covariances.shape)}: need ({components},), "
                f"{(components, *self.shape)} or {(components, dim, dim)}",
            )
            self.variances = covariances.reshape(components, dim)
        rounding = torch.finfo(self.variances.dtype).eps * dim * self.variances.max()
        require(bool((self.variances >= -rounding).all()), "covariances: a matrix is not positive semi-definite")
        self.variances = self.variances.clamp(min=0)

    def components(self, chosen: Tensor) -> GaussianMixture:
        """The mixture of some components, by booleans or numbers."""
        part = copy.copy(self)
        part.weights = self.weights[chosen] / self.weights[chosen].sum()
        part.means = self.means[chosen]
        part.variances = self.variances[chosen]
        part.rotations = None if self.rotations is None else self.rotations[chosen]
        return part

    @property
    def sigma_data(self) -> float:
        mean = (self.weights @ self.means).mean()
        second_moment = (self.weights @ (self.means**2 + self.variances)).mean()  # rotations keep the trace
        return (second_moment - mean**2).sqrt().item()

    @property
    def _any_tensor(self) -> Tensor:
        return self.weights

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        component = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        eps = torch.randn(
            (num_samples, self.means.shape[1]), generator=generator, device=self.means.device, dtype=self.means.dtype
        )
        x = self._rotate(eps * self.variances.sqrt()[component], component)
        return (self.means[component] + x).reshape(num_samples, *self.shape)

    def log_prob(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._joint(x_t, alpha, sigma)[0].logsumexp(1)

    def denoise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log_joint, offset, variance = self._joint(x_t, alpha, sigma)
        shift = offset * (self.variances * alpha.reshape(-1, 1, 1) / variance)  # E[x_0 | x_t, k] - mu_k, eigenbasis
        if self.rotations is not None:
            shift = torch.einsum("kij,bki->bkj", self.rotations, shift)
        posterior = log_joint.softmax(1)
        return torch.einsum("bk,bkd->bd", posterior, self.means + shift).reshape(x_t.shape)

    def _joint(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x_t; k) `(B, K)`; x_t - alpha mu_k `(B, K, D)` and its variances, in each eigenbasis."""
        alpha = alpha.reshape(-1, 1, 1)
        sigma = sigma.reshape(-1, 1, 1)
        offset = x_t.flatten(1)[:, None] - alpha * self.means
        if self.rotations is not None:
            offset = torch.einsum("kij,bkj->bki", self.rotations, offset)
        variance = alpha**2 * self.variances + sigma**2
        log_normal = -0.5 * (offset**2 / variance + torch.log(2 * math.pi * variance)).sum(2)
        return self.weights.log() + log_normal, offset, variance

    def _rotate(self, x: Tensor, component: Tensor) -> Tensor:
        """From the eigenbasis of each sample's component to the axes."""
        return x if self.rotations is None else torch.einsum("bij,bi->bj", self.rotations[component], x)


@final
class Gaussian(Target):
    """N(mean, covariance), with the exact map of its probability flow.

    Args:
        mean: `shape`.
        covariance: `(D, D)` over the flattened data, or variances of each entry, `shape`.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mixture = GaussianMixture(mean.new_ones(1), mean[None], covariance[None])
        self.shape = self.mixture.shape

    @property
    def sigma_data(self) -> float:
        return self.mixture.sigma_data

    @property
    def _any_tensor(self) -> Tensor:
        return self.mixture.weights

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mixture.sample(num_samples, generator)

    def log_prob(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.mixture.log_prob(x_t, alpha, sigma)

    def denoise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """mu + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha mu), with the mean mu and the covariance C."""
        mixture = self.mixture
        alpha = alpha.reshape(-1, 1)
        offset = x_t.flatten(1) - alpha * mixture.means
        gain = alpha * mixture.variances / (alpha**2 * mixture.variances + sigma.reshape(-1, 1) ** 2)
        if mixture.rotations is None:
            shift = offset * gain
        else:
            axes = mixture.rotations[0]
            shift = ((offset @ axes.mT) * gain) @ axes
        return (mixture.means + shift).reshape(x_t.shape)

    def probability_flow(self, x_t: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
        """Carries x_t from (alpha, sigma) = start to end along the probability-flow ODE, exactly.

        In the covariance's eigenbasis each coordinate keeps its standard score: it is shifted and scaled from
        N(alpha mu, alpha^2 l + sigma^2) at the start to the same at the end.
        """
        _, offset, variance = self.mixture._joint(x_t, *start)
        alpha, sigma = (scale.reshape(-1, 1) for scale in end)
        end_variance = alpha**2 * self.mixture.variances + sigma**2
        z = offset[:, 0] * (end_variance / variance[:, 0]).sqrt()
        component = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return (alpha * self.mixture.means + self.mixture._rotate(z, component)).reshape(x_t.shape)


@final
class EmpiricalDistribution(Target):
    """The data points themselves, equally likely: `points` has shape `(N, *shape)`.

    With a network of unlimited capacity, denoising score matching converges to its score: samples are copies.
    """

    def __init__(self, points: Tensor) -> None:
        require(len(points) >= 1, "points: need at least one")
        self.points = points
        self.shape = tuple(points.shape[1:])

    @cached_property
    def sigma_data(self) -> float:
        return self.points.std(correction=0).item()

    @property
    def _any_tensor(self) -> Tensor:
        return self.points

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        index = torch.randint(len(self.points), (num_samples,), generator=generator, device=self.points.device)
        return self.points[index]

    def log_prob(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        dim = self.points[0].numel()
        normalizer = math.log(len(self.points)) + 0.5 * dim * torch.log(2 * math.pi * sigma**2)
        return self._log_kernel(x_t, alpha, sigma).logsumexp(1) - normalizer

    def denoise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (self._log_kernel(x_t, alpha, sigma).softmax(1) @ self.points.flatten(1)).reshape(x_t.shape)

    def _log_kernel(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-|x_t - alpha x_i|^2 / (2 sigma^2), `(B, N)`."""
        u = x_t.flatten(1) / alpha.reshape(-1, 1)
        distance = torch.cdist(u, self.points.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        return -0.5 * (distance * (alpha / sigma).reshape(-1, 1)) ** 2

r"""Distributions whose noisy marginals are known exactly.

If x_0 ~ sum_k w_k N(mu_k, C_k), then x_t = alpha x_0 + sigma eps ~ sum_k w_k N(alpha mu_k, alpha^2 C_k + sigma^2 I).
So density, score and the denoiser E[x_0 | x_t] have closed forms at every alpha and sigma, hence under every SDE. A set
of data points is the case C_k = 0: its denoiser is the one that a network of unlimited capacity would learn.

Given a measurement y = A x_0 + noise, both are of their own kind again (`posterior`). With S the variance of the noise,

    p(x_0 | y) = sum_k w_k' N(mu_k + K_k (y - A mu_k), C_k - K_k A C_k),      K_k = C_k A' (A C_k A' + S)^-1,

and w_k' is proportional to w_k N(y; A mu_k, A C_k A' + S).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from scoresde._movable import Movable
from scoresde._shape import match_rank
from scoresde.errors import require
from scoresde.operators import GaussianNoise, LinearOperator, MeasurementNoise, Operator, as_noise


class Target(Movable, ABC):
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

    def scaled(self, center: float, scale: float) -> GaussianMixture:
        """The distribution of (x_0 - center) / scale."""
        part = copy.copy(self)
        part.means = (self.means - center) / scale
        part.variances = self.variances / scale**2
        return part

    def posterior(self, operator: LinearOperator, y: Tensor, noise: MeasurementNoise | float) -> GaussianMixture:
        """p(x_0 | y) for a measurement y = A x_0 + noise, exactly.

        Components whose weight is 0 in the type of the mixture are left out.

        Args:
            operator: A, linear.
            y: `measured_shape`, one measurement.
            noise: Gaussian, or its deviation.

        Raises:
            UsageError: for an operator that is not linear, or other noise.
        """
        noise = as_noise(noise)
        require(isinstance(operator, LinearOperator), f"operator={operator}: need a linear one, to stay a mixture")
        require(isinstance(noise, GaussianNoise), f"noise={noise}: need Gaussian noise, to stay a mixture")
        operator.check_measured(y[None])
        matrix = operator.to(self.device, self.dtype).matrix()
        residual = y.flatten().to(self.means) - self.means @ matrix.mT
        axes = torch.eye(self.means.shape[1]).to(self.means) if self.rotations is None else self.rotations
        covariances = axes.mT @ (self.variances[:, :, None] * axes)
        pulled = covariances @ matrix.mT
        measured = matrix @ pulled + noise.variance(y) * torch.eye(len(matrix)).to(matrix)
        measured = 0.5 * (measured + measured.mT)
        found = torch.distributions.MultivariateNormal(torch.zeros_like(residual), measured)
        log_weights = self.weights.log() + found.log_prob(residual)
        gains = torch.cholesky_solve(pulled.mT, found.scale_tril).mT
        weights = log_weights.softmax(0)
        kept = weights > 0
        means = self.means + torch.einsum("kij,kj->ki", gains, residual)
        # Joseph's form, which stays positive
        left = torch.eye(self.means.shape[1]).to(gains) - gains @ matrix
        after = left @ covariances @ left.mT + noise.variance(y) * gains @ gains.mT
        return GaussianMixture(weights[kept], means[kept].reshape(-1, *self.shape), 0.5 * (after + after.mT)[kept])

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

    def posterior(self, operator: LinearOperator, y: Tensor, noise: MeasurementNoise | float) -> Gaussian:
        """p(x_0 | y), exactly; see `GaussianMixture.posterior`."""
        found = self.mixture.posterior(operator, y, noise)
        assert found.rotations is not None
        axes = found.rotations[0]
        return Gaussian(found.means[0].reshape(self.shape), axes.mT @ (found.variances[0][:, None] * axes))

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
    """Data points themselves: `points` has shape `(N, *shape)`.

    With a network of unlimited capacity, denoising score matching converges to its score: samples are copies.

    Args:
        points: the data.
        weights: `(N,)`, positive; equal by default.
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        require(len(points) >= 1, "points: need at least one")
        self.points = points
        self.shape = tuple(points.shape[1:])
        if weights is None:
            weights = torch.ones(len(points)).to(points)
        require(weights.shape == (len(points),), f"weights of shape {tuple(weights.shape)}: need ({len(points)},)")
        require(bool((weights > 0).all()), "weights: all must be positive; leave out points of weight 0")
        self.weights = weights / weights.sum()

    def posterior(self, operator: Operator, y: Tensor, noise: MeasurementNoise | float) -> EmpiricalDistribution:
        """p(x_0 | y) for a measurement y = A(x_0) + noise, exactly: the points weighed by their likelihood.

        Points whose weight is 0 in their type are left out.

        Args:
            operator: A, any.
            y: `measured_shape`, one measurement.
            noise: of the measurement, or the deviation of Gaussian noise.

        Raises:
            UsageError: for noise without a density, as of deviation 0.
        """
        noise = as_noise(noise)
        operator.check_measured(y[None])
        clean = operator.to(self.device, self.dtype)(self.points)
        weights = (self.weights.log() + noise.log_prob(y.to(clean), clean)).softmax(0)
        return EmpiricalDistribution(self.points[weights > 0], weights[weights > 0])

    @cached_property
    def sigma_data(self) -> float:
        if bool((self.weights == self.weights[0]).all()):
            return self.points.std(correction=0).item()
        mean, square = (self.weights @ power.flatten(1).mean(1) for power in (self.points, self.points**2))
        return (square - mean**2).sqrt().item()

    @property
    def _any_tensor(self) -> Tensor:
        return self.points

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        return self.points[torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)]

    def log_prob(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        dim = self.points[0].numel()
        return self._log_joint(x_t, alpha, sigma).logsumexp(1) - 0.5 * dim * torch.log(2 * math.pi * sigma**2)

    def denoise(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (self._log_joint(x_t, alpha, sigma).softmax(1) @ self.points.flatten(1)).reshape(x_t.shape)

    def _log_joint(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log w_i - |x_t - alpha x_i|^2 / (2 sigma^2), `(B, N)`."""
        u = x_t.flatten(1) / alpha.reshape(-1, 1)
        distance = torch.cdist(u, self.points.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        return self.weights.log() - 0.5 * (distance * (alpha / sigma).reshape(-1, 1)) ** 2

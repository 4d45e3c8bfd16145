"""Distributions with known answers, far from the special case of unit variance."""

from __future__ import annotations

import torch

from scoresde import Gaussian, GaussianMixture


def gaussian(device: torch.device | str = "cpu", shape: tuple[int, ...] = (3,)) -> Gaussian:
    """A shifted Gaussian with correlated entries of very different variances; float64."""
    generator = torch.Generator().manual_seed(1)
    dim = torch.Size(shape).numel()
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    variances = torch.logspace(-2, 0.6, dim, dtype=torch.float64)
    mean = torch.linspace(-1, 1.5, dim, dtype=torch.float64).reshape(shape)
    return Gaussian(mean.to(device), ((rotation * variances) @ rotation.T).to(device))


def mixture(device: torch.device | str = "cpu", shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    """Three correlated components of unequal weight; float64."""
    generator = torch.Generator().manual_seed(2)
    dim = torch.Size(shape).numel()
    factors = 0.3 * torch.randn(3, dim, dim, generator=generator, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.02 * torch.eye(dim, dtype=torch.float64)
    means = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return GaussianMixture(weights.to(device), means.to(device), covariances.to(device))

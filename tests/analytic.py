"""Distributions with known answers, far from the special case of unit variance."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.orders import gaussian
from scoresde import (
    SDE,
    DenoisedParametrization,
    EDMParametrization,
    EmpiricalDistribution,
    GaussianMixture,
    NetworkScoreModel,
    NoiseParametrization,
    ScoreParametrization,
    VelocityParametrization,
)
from scoresde.parametrization import Parametrization
from scoresde.targets import Target

__all__ = ["PARAMETRIZATIONS", "gaussian", "mixture", "network_model", "points", "slope"]


def mixture(device: torch.device | str = "cpu", shape: tuple[int, ...] = (2,)) -> GaussianMixture:
    """Three correlated components of unequal weight; float64."""
    generator = torch.Generator().manual_seed(2)
    dim = torch.Size(shape).numel()
    factors = 0.3 * torch.randn(3, dim, dim, generator=generator, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.02 * torch.eye(dim, dtype=torch.float64)
    means = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return GaussianMixture(weights.to(device), means.to(device), covariances.to(device))


def slope(function, t: torch.Tensor) -> torch.Tensor:
    """The derivative of a function that works element by element."""
    t = t.detach().clone().requires_grad_()
    value = function(t)
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


def points(device: torch.device | str = "cpu", shape: tuple[int, ...] = (2,)) -> EmpiricalDistribution:
    """Seven data points; float64."""
    generator = torch.Generator().manual_seed(3)
    return EmpiricalDistribution(torch.randn(7, *shape, generator=generator, dtype=torch.float64).to(device))


class ExactNetwork(nn.Module):
    """What a perfect network emits: F = (D - c_skip x_t) / c_out, with D the target's own denoiser.

    It is given the scaled x_t and c_noise alone, as any network is. `change` maps D and x_t to another denoiser.
    """

    def __init__(self, target: Target, sde: SDE, parametrization: Parametrization, change=lambda x0_hat, x_t: x0_hat):
        super().__init__()
        self.target, self.sde, self.parametrization, self.change = target, sde, parametrization, change

    def forward(self, x, c_noise, cond=None):
        level = self.sde.level(self.sde.time(-8 * c_noise))
        wide = level.match_rank(x)
        x_t = x / self.parametrization.c_in(wide)
        x0_hat = self.change(self.target.denoise(x_t, level.alpha, level.sigma), x_t)
        return (x0_hat - self.parametrization.c_skip(wide) * x_t) / self.parametrization.c_out(wide)


def network_model(
    target: Target, sde: SDE, parametrization: Parametrization, change=lambda x0_hat, x_t: x0_hat
) -> NetworkScoreModel:
    """A `NetworkScoreModel` whose network is exact, up to `change`."""
    network = ExactNetwork(target, sde, parametrization, change)
    return NetworkScoreModel(network, sde, parametrization, target.shape)


PARAMETRIZATIONS = {
    "noise": NoiseParametrization(0.7),
    "denoised": DenoisedParametrization(0.7),
    "score": ScoreParametrization(0.7),
    "velocity": VelocityParametrization(0.7),
    "edm": EDMParametrization(0.7),
}

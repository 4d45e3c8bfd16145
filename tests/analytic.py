"""Distributions with known answers, far from the special case of unit variance."""

from __future__ import annotations

import torch
from torch import nn

from scoresde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DenoisedParametrization,
    DiscreteVPSDE,
    EDMParametrization,
    EmpiricalDistribution,
    FlowParametrization,
    Gaussian,
    GaussianMixture,
    GaussianPathSDE,
    LogSigmaInput,
    NetworkScoreModel,
    NoiseParametrization,
    RectifiedFlowSDE,
    ScoreParametrization,
    SubVPSDE,
    TimeInput,
    VelocityParametrization,
)
from scoresde._stable import invert_decreasing
from scoresde.parametrization import Input, Parametrization
from scoresde.targets import Target

SDES = {
    "vp": VPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "cosine": CosineSDE(),
    "edm": EDMSDE(),
    "flow": RectifiedFlowSDE(),
    "ddpm": DiscreteVPSDE(),
    "own": GaussianPathSDE(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99),
}


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


def slope(function, t: torch.Tensor) -> torch.Tensor:
    """The derivative of a function that works element by element."""
    t = t.detach().clone().requires_grad_()
    value = function(t)
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


def points(device: torch.device | str = "cpu", shape: tuple[int, ...] = (2,)) -> EmpiricalDistribution:
    """Seven data points; float64."""
    generator = torch.Generator().manual_seed(3)
    return EmpiricalDistribution(torch.randn(7, *shape, generator=generator, dtype=torch.float64).to(device))


def time_of_label(what: Input, sde: SDE, c_noise: torch.Tensor) -> torch.Tensor:
    """The time whose noise label this is."""
    if isinstance(what, TimeInput):
        return (c_noise - what.offset) / what.scale
    if isinstance(what, LogSigmaInput):
        return invert_decreasing(lambda t: -torch.log(sde.sigma(t)), -c_noise, sde.t_min, sde.t_max)
    return sde.time(-8 * c_noise)


class ExactNetwork(nn.Module):
    """What a perfect network emits: F = (D - c_skip x_t) / c_out, with D the target's own denoiser.

    It is given the scaled x_t and c_noise alone, as any network is. `change` maps D and x_t to another denoiser.
    """

    def __init__(self, target: Target, sde: SDE, parametrization: Parametrization, change=lambda x0_hat, x_t: x0_hat):
        super().__init__()
        self.target = target
        self.parametrization = parametrization
        self.change = change
        self._sde = (sde,)  # in a tuple: the weights of a learned one are not the network's
        self.register_buffer("anchor", torch.empty(0, dtype=target.dtype, device=target.device), persistent=False)

    def forward(self, x, c_noise, cond=None):
        (sde,) = self._sde
        level = sde.level(time_of_label(self.parametrization.input, sde, c_noise))
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
    "flow": FlowParametrization(0.7),
    "edm": EDMParametrization(0.7),
}

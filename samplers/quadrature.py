r"""Weights of quadratures: the integral over a step of the polynomial through known values.

The values h_j are known at nodes v_j of a variable v, in which h is approximated by a polynomial. It is integrated over
the measure of an integrand:

    w_j = int L_j(v) dm = int L_j(v) (dm/dv) dv,        L_j the Lagrange polynomials of the nodes,

by Gauss-Legendre quadrature in v, whose error is below rounding for the smooth factors here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from samplers.integrands import Integrand
from scoresde.errors import unknown_name
from scoresde.sde import SDE

POINTS = 24  # of the Gauss-Legendre rule on a step


class Variable(ABC):
    """A variable v along the path, falling or rising with the noise level r."""

    @abstractmethod
    def at(self, t: Tensor, noise_level: Tensor) -> Tensor:
        """v at a time and its noise level."""

    @abstractmethod
    def noise_level(self, v: Tensor) -> Tensor:
        """r at v."""

    @abstractmethod
    def log_slope(self, v: Tensor) -> Tensor:
        """d(log r) / dv."""


@final
@dataclass(frozen=True)
class Time(Variable):
    """v = t."""

    sde: SDE

    def at(self, t: Tensor, noise_level: Tensor) -> Tensor:
        return t

    def noise_level(self, v: Tensor) -> Tensor:
        return self.sde.noise_level(v)

    def log_slope(self, v: Tensor) -> Tensor:
        return 0.5 * (self.sde.diffusion(v) / self.sde.sigma(v)) ** 2  # from the moment equations of `scoresde.sde`


@final
@dataclass(frozen=True)
class LogSNR(Variable):
    """v = log r = -log_snr / 2: a polynomial in one is a polynomial in the other."""

    def at(self, t: Tensor, noise_level: Tensor) -> Tensor:
        return torch.log(noise_level)

    def noise_level(self, v: Tensor) -> Tensor:
        return torch.exp(v)

    def log_slope(self, v: Tensor) -> Tensor:
        return torch.ones_like(v)


@final
@dataclass(frozen=True)
class NoiseLevel(Variable):
    """v = r."""

    def at(self, t: Tensor, noise_level: Tensor) -> Tensor:
        return noise_level

    def noise_level(self, v: Tensor) -> Tensor:
        return v

    def log_slope(self, v: Tensor) -> Tensor:
        return 1 / v


@final
@dataclass(frozen=True)
class Phi(Variable):
    """v = atan(r / sigma_data)."""

    sigma_data: float = 1.0

    def at(self, t: Tensor, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level / self.sigma_data)

    def noise_level(self, v: Tensor) -> Tensor:
        return self.sigma_data * torch.tan(v)

    def log_slope(self, v: Tensor) -> Tensor:
        return 2 / torch.sin(2 * v)


VariableName = Literal["t", "log_snr", "noise_level", "phi"]


def variable_of(name: str, sde: SDE, sigma_data: float = 1.0) -> Variable:
    """The variable of a name: t, log_snr, noise_level or phi."""
    variables = {"t": Time(sde), "log_snr": LogSNR(), "noise_level": NoiseLevel(), "phi": Phi(sigma_data)}
    if name not in variables:
        raise unknown_name("variable", name, variables)
    return variables[name]


@cache
def _gauss() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Gauss-Legendre rule on [-1, 1]."""
    x, w = np.polynomial.legendre.leggauss(POINTS)
    return torch.from_numpy(x), torch.from_numpy(w)


def weights(integrand: Integrand, variable: Variable, nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """w_j of steps from v = `start` to `end`, both `(n,)`, for values at `nodes` `(n, k)`: `(n, k)`."""
    x, w = _gauss()
    half = (end - start)[:, None] / 2
    v = start[:, None] + half * (1 + x)  # (n, POINTS)
    density = half * w * integrand.slope(variable.noise_level(v)) * variable.log_slope(v)
    result = []
    for j in range(nodes.shape[1]):
        lagrange = torch.ones_like(v)
        for i in range(nodes.shape[1]):
            if i != j:
                lagrange = lagrange * (v - nodes[:, i : i + 1]) / (nodes[:, j] - nodes[:, i])[:, None]
        result.append((density * lagrange).sum(1))
    return torch.stack(result, 1)

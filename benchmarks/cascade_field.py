"""A cascade on a Gaussian field, where every answer is known: no network, no Monte Carlo.

The field has the covariance exp(-distance / length) on a grid of `SIDE` x `SIDE`. With R the map to half the size, the
first stage draws R x, a Gaussian; the upsampler draws x given y = R x + s eps, a Gaussian too,

    P = (C^-1 + R'R / s^2)^-1,   E[x | y] = P R' y / s^2,   Cov[x | y] = P.

Both denoisers are exact, and the sampler is deterministic. So the samples of `samplers.cascade` are a linear function
of the normal numbers that they are made from. It is recovered by least squares, and with it the mean and the
covariance of what is drawn, without Monte Carlo. What is left is the sampler's error, which falls with the number of
steps, and that of the prior, which knows nothing of the mean: sqrt(largest eigenvalue of P) over the largest noise
level.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from samplers import Heun, Sampler, Stage, cascade
from samplers.cascades import stage_seed
from scoresde import (
    EDMSDE,
    SDE,
    CallableScoreModel,
    Condition,
    DenoisedParametrization,
    ExactScoreModel,
    Gaussian,
    Noise,
    UpsamplingObjective,
)
from scoresde.resize import KERNELS

SIDE = 8
LENGTH = 2.0  # of the correlation, in places
SPARE = 32  # samples more than columns: what a linear function leaves of them is 0


class Field:
    """The exact models of a field, and what a cascade should draw from it.

    Args:
        upsampling: how the low resolution is made.
        noise: s.
        sde: of both models.
        side: of the grid.
    """

    def __init__(self, upsampling: UpsamplingObjective, noise: float, sde: SDE, side: int = SIDE) -> None:
        self.upsampling = upsampling
        self.noise = noise
        self.sde = sde
        self.shape = (1, side, side)
        self.low_shape = upsampling.low_shape(self.shape)
        places = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 2)
        self.covariance = torch.exp(-torch.cdist(places, places) / LENGTH)
        every = torch.eye(side**2, dtype=torch.float64).view(-1, *self.shape)
        self.down = upsampling.reduce(every).flatten(1).mT
        low = torch.eye(len(self.down), dtype=torch.float64).view(-1, *self.low_shape)
        images = upsampling.condition(low, torch.zeros(len(low)), torch.zeros_like(low))
        assert isinstance(images, dict)
        self.back = torch.linalg.pinv(images["image"].flatten(1).mT)
        precision = torch.linalg.inv(self.covariance) + self.down.mT @ self.down / noise**2
        self.posterior = torch.linalg.inv(precision)
        self.gain = self.posterior @ self.down.mT / noise**2
        self.low_covariance = self.down @ self.covariance @ self.down.mT

    def base(self) -> ExactScoreModel:
        """The exact model of the field at low resolution."""
        mean = torch.zeros(self.low_shape, dtype=torch.float64)
        return ExactScoreModel(Gaussian(mean, self.low_covariance), self.sde)

    def upsampler(self) -> CallableScoreModel:
        """The exact model of the field given the condition of an upsampler."""
        variances, rotation = torch.linalg.eigh(self.posterior)

        def denoiser(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
            assert isinstance(cond, dict)
            assert bool((cond["image_noise"] == self.noise).all())
            mean = cond["image"].flatten(1) @ (self.gain @ self.back).mT
            level = self.sde.level(t)
            alpha, sigma = level.alpha[:, None], level.sigma[:, None]
            left = (x_t.flatten(1) - alpha * mean) @ rotation
            kept = alpha * variances / (alpha**2 * variances + sigma**2)
            return (mean + (kept * left) @ rotation.mT).view(x_t.shape)

        rule = DenoisedParametrization(self.covariance.diagonal().mean().sqrt().item())
        return CallableScoreModel(denoiser, rule, self.sde, self.shape, dtype=torch.float64)

    def errors(self, sampler: Sampler, num_steps: int, seed: int = 0) -> dict[str, float]:
        """Relative errors of what a cascade draws, in Frobenius norms; of its variances the largest one."""
        stages = [
            Stage(self.base(), sampler, num_steps),
            Stage(self.upsampler(), sampler, num_steps, self.upsampling, self.noise),
        ]
        sizes = [len(self.low_covariance)] * 2 + [len(self.covariance)]
        count = sum(sizes) + SPARE
        low, high = (drawn.x.flatten(1) for drawn in cascade(stages, count, seed=seed))
        index = torch.arange(count)
        second = Noise(stage_seed(seed, 1), index)
        numbers = [
            Noise(seed, index).normal(0, (sizes[0],), torch.float64),
            second.stream("image eps").normal(0, (sizes[1],), torch.float64),
            second.normal(0, (sizes[2],), torch.float64),
        ]
        of_low = _solved(numbers[0], low)
        maps = _solved(torch.cat(numbers, 1), high).split(sizes, 1)
        drawn_low = of_low @ of_low.mT
        drawn_high = sum((part @ part.mT for part in maps), torch.zeros_like(self.covariance))
        own = maps[2] @ maps[2].mT
        return {
            "low covariance": _error(drawn_low, self.low_covariance),
            "conditional mean": max(
                _error(maps[0], self.gain @ of_low), _error(maps[1], self.noise * self.gain)
            ),  # E[x | y] = gain (R x + s eps)
            "conditional covariance": _error(own, self.posterior),
            "conditional variance": _error(own.diagonal(), self.posterior.diagonal(), largest=True),
            "joint covariance": _error(
                _joint(drawn_low, maps[0] @ of_low.mT, drawn_high),
                _joint(self.low_covariance, self.gain @ self.low_covariance, self.covariance),
            ),
            "variance": _error(drawn_high.diagonal(), self.covariance.diagonal(), largest=True),
        }


def _solved(numbers: Tensor, x: Tensor) -> Tensor:
    """The matrix of the linear function of numbers `(N, k)` that samples `(N, D)` are, `(D, k)`."""
    found = torch.linalg.lstsq(numbers, x).solution
    left = (numbers @ found - x).abs().max().item()
    assert left < 1e-8, f"the samples are no linear function of their numbers: {left}"
    return found.mT


def _joint(low: Tensor, cross: Tensor, high: Tensor) -> Tensor:
    """The covariance of low and high resolution together; `cross` is that of high with low."""
    return torch.cat([torch.cat([low, cross.mT], 1), torch.cat([cross, high], 1)])


def _error(found: Tensor, exact: Tensor, largest: bool = False) -> float:
    if largest:
        return ((found - exact) / exact).abs().max().item()
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    print(f"{'kernel':10}{'s':>5}{'t_max':>6}{'evaluations':>12}  relative error in %")
    for kernel in KERNELS:
        for noise, t_max in itertools.product((0.1, 0.3), (80.0, 640.0)):
            field = Field(UpsamplingObjective(kernel=kernel), noise, EDMSDE(t_max=t_max))
            for num_steps in (40, 80, 160):
                errors = field.errors(Heun(), num_steps)
                shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in errors.items())
                print(f"{kernel:10}{noise:5.2g}{t_max:6g}{2 * num_steps:12}  {shown}", flush=True)


if __name__ == "__main__":
    main()

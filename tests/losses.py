"""What the tests of objectives share: models, draws and the loss at them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scoresde import MLP, SDE, BatchNoise, NetworkScoreModel, Objective
from scoresde.condition import Condition
from scoresde.objective import Batch
from scoresde.parametrization import Parametrization
from scoresde.targets import Target


def random_model(
    sde: SDE, parametrization: Parametrization, shape: tuple[int, ...], device: torch.device
) -> NetworkScoreModel:
    """A small network with random weights; float64."""
    torch.manual_seed(0)
    network = MLP(shape[0], width=16, depth=1).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return NetworkScoreModel(network, sde, parametrization, shape)


def draws(
    target: Target, sde: SDE, device: torch.device, num: int, seed: int = 0, shared_t: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, t and eps, float64; t uniform, or the same for all."""
    generator = torch.Generator(device).manual_seed(seed)
    x_0 = target.sample(num, generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=device)
    u = torch.rand(num, generator=generator, dtype=x_0.dtype, device=device)
    t = sde.t_min + (sde.t_max - sde.t_min) * u if shared_t is None else torch.full_like(u, shared_t)
    return x_0, t, eps


def whole_batch(num: int, device: torch.device | str, seed: int = 1) -> BatchNoise:
    """Noise for a batch in one process."""
    return BatchNoise(seed, 0, num, torch.arange(num, device=device))


def losses(
    objective: Objective, model: NetworkScoreModel, x_0: Tensor, t: Tensor, eps: Tensor, cond: Condition = None
) -> Tensor:
    """The loss of each sample at these draws."""
    return objective.at(model, Batch(x_0, cond), {"t": t, "eps": eps})


def away_from_the_start(sde: SDE, t: Tensor) -> Tensor:
    """Times where D - x_0 itself keeps 1e-9 of its digits."""
    return t.clamp(0.05 * sde.t_max, sde.t_max)

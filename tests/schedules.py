"""Learned schedules with random weights, as a training would leave them."""

from __future__ import annotations

import torch

from scoresde import LearnedVPSDE


def bent(device: torch.device | str = "cpu", num_segments: int = 37, **arguments: float) -> LearnedVPSDE:
    """A schedule that is far from straight.

    It has 37 segments, so that no time of the tests is a knot, where the slope jumps.
    """
    sde = LearnedVPSDE(num_segments=num_segments, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sde.weights.copy_(torch.randn(num_segments, generator=generator))
        sde.ends.copy_(torch.tensor([0.3, -0.7]))
    return sde.to(device)


LEARNED = {
    "straight": lambda device: LearnedVPSDE(num_segments=37).to(device),
    "bent": bent,
    "bent, other times": lambda device: bent(device, gamma_min=-6.0, gamma_max=9.0, t_min=0.2, t_max=3.0),
}

"""Log densities that are found, beside those that are known."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers import Likelihood
from scoresde.targets import Target


def exact_log_prob(target: Target, x_0: Tensor) -> Tensor:
    """Log density of clean data, `(B,)`."""
    one = torch.ones((), dtype=torch.float64, device=x_0.device)
    return target.log_prob(x_0, one, 0 * one)


def rmse(found: Likelihood, target: Target, x_0: Tensor) -> float:
    """Root mean square of the error in nats per dimension."""
    error = found.log_prob - exact_log_prob(target, x_0)
    return (error / x_0[0].numel()).square().mean().sqrt().item()

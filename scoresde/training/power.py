r"""Averages of the weights with power-function profiles, and the average of any length made from them afterwards.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3.1 and appendix C.
Let theta(tau) be the weights after step n for n - 1 < tau <= n. After T steps the average is

    theta_hat(T) = int_0^T p(tau) theta(tau) dtau,    p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1).

1. It needs no history, as theta_hat(n) = beta theta_hat(n-1) + (1 - beta) theta(n) with beta = (1 - 1/n)^(gamma + 1).
   The first weights are forgotten at once, since beta = 0 for n = 1.
2. Its profile p has the standard deviation `length` x T, so that a longer training is averaged over more steps:

    length = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).

3. A sum of averages x_1 theta_hat_1 + x_2 theta_hat_2 + ... of one training has the profile x_1 p_1 + x_2 p_2 + ...
   So averages of two lengths, kept every some steps, give one of any other length p after training:

    x = argmin int (x_1 p_1 + x_2 p_2 + ... - p)^2 dtau    with x_1 + x_2 + ... = 1.

   Karras et al. do without the constraint. It makes weights that training does not change come out as they are.
4. By Cauchy and Schwarz, a weight is then wrong by at most ||sum_i x_i p_i - p|| ||theta - c||, for every constant c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

LONGEST = 1 / math.sqrt(12)  # of the plain mean of all weights, gamma = 0
NEWTON_STEPS = 12  # seven reach the last digit for the plain mean, fewer for shorter lengths


def length_of(gamma: float) -> float:
    """Standard deviation of the profile tau^gamma on [0, T], over T (Karras et al. 2024, section 3.1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(length: float) -> float:
    """The exponent of the profile of a length; the inverse of `length_of`.

    With u = gamma + 2 and s = length^-2, it is the largest root of the cubic u^3 + u^2 - s u + s. The cubic is positive
    at sqrt(s) and convex, so Newton's method descends from there to that root.

    Raises:
        UsageError: unless 0 < length <= 0.2887, the length of the plain mean.
    """
    require(0 < length <= LONGEST, f"length={length}: need 0 < length <= {LONGEST:.4f}, the length of the plain mean")
    s = length**-2
    u = math.sqrt(s)
    for _ in range(NEWTON_STEPS):
        u -= (u**3 + u**2 - s * u + s) / (3 * u**2 + 2 * u - s)
    return max(0.0, u - 2)


def power_decay(gamma: float, step: int) -> float:
    """The decay beta of step 1, 2, ...: (1 - 1/step)^(gamma + 1) (Karras et al. 2024, section 3.1)."""
    return float((1 - 1 / step) ** (gamma + 1))


@final
@dataclass(frozen=True)
class Profile:
    """The profile tau^gamma on [0, step] of an average, normalised to integral 1."""

    gamma: float
    step: int


def products(some: Sequence[Profile], others: Sequence[Profile]) -> Tensor:
    """The inner products int p q dtau of profiles `(len(some), len(others))`, in float64 (Karras et al., appendix C).

    For p of exponent g on [0, T] and q of exponent h on [0, U], with m = min(T, U):

        int_0^m p q dtau = (g + 1) (h + 1) / (g + h + 1) (m / T)^g (m / U)^h / max(T, U).
    """
    g, h = (torch.tensor([p.gamma for p in profiles], dtype=torch.float64) for profiles in (some, others))
    T, U = (torch.tensor([p.step for p in profiles], dtype=torch.float64) for profiles in (some, others))
    g, T = g[:, None], T[:, None]
    m = torch.minimum(T, U)
    return (g + 1) * (h + 1) / (g + h + 1) * (m / T) ** g * (m / U) ** h / torch.maximum(T, U)


def combination(kept: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The factors x of a sum of averages whose profile is nearest to a wanted one, and how near that is.

    The factors solve the normal equations A x + mu = b with sum x = 1, where A holds the inner products of the kept
    profiles and b those with the wanted one.

    Args:
        kept: profiles of the averages, no two equal.
        wanted: the profile to come near to.

    Returns:
        The factors, and the relative error ||sum_i x_i p_i - p|| / ||p||.
    """
    size = products([wanted], [wanted]).squeeze()
    count = len(kept)
    matrix = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    matrix[:count, :count] = products(kept, kept) / size
    matrix[:count, count] = matrix[count, :count] = 1
    right = torch.ones(count + 1, dtype=torch.float64)
    right[:count] = products(kept, [wanted]).squeeze(1) / size
    x = torch.linalg.solve(matrix, right)[:count]
    squared = 1 - 2 * x @ right[:count] + x @ matrix[:count, :count] @ x
    return x.tolist(), math.sqrt(max(0.0, squared.item()))

r"""Nodes: the noise levels at which fitted tables evaluate the model.

**Power nodes**: psi_k = psi_max (1 - k/n)^power with psi = atan(r / scale). With a power and a scale that suit the
data they are right for few steps.

**Equal-error nodes** are found on the paths of the reference. Each step adds an error, and the nodes are moved until
all steps add about the same. Let e_k and c_k be the mean absolute residuals of predictor and corrector on step k from
phi_k to phi_{k+1}, over the kept entries, and w_k the weight of h_{k+1} in the corrector (`samplers.fitted.
least_squares`). Then

    step_error_k^2 = c_k^2 + (w_k e_k / sin phi_{k+1})^2,

and the last step, which has no corrector, has e_k alone. The second term arises because h_{k+1} is evaluated at the
predicted state: h = (cos^2(phi) u - D) / sin(phi) depends on y = u cos(phi) directly through cos(phi)/sin(phi), which
is bounded by 1/sin(phi); that D depends on y too is ignored.

    1. Fit the weights on the current nodes, and take the errors of the steps.
    2. The error of a step grows about as the cube of its length, so each interval gets new nodes in proportion to
       step_error^(1/3). An exponent of 0.27 keeps the iteration stable.
    3. Repeat. A few rounds lead to about the same nodes from any start.
    4. Blend: the cumulative distribution of the nodes is 15/16 of this one and 1/16 of a power grid's, so that no
       interval is left without nodes.

**Early nodes**: an error at large noise can move a sample to another basin, and then grows; an error at small noise
stays as it is. How much this matters depends on the network. Early nodes equalise

    step_error_k (1 + W r_k / (r_k + 4 spread)),        r_k where step k begins, spread that of the `Reference`,

with W = 30 up to 20 steps and 30 * 20/n above.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samplers import grids
from samplers.fitted.least_squares import fit_weights
from samplers.fitted.reference import Reference
from scoresde.sde import SDE

# Chosen by trial on the problems of benchmarks/samplers_nfe.py; benchmarks/NOTES.md lists what was tried.
FEW_STEPS = 12  # with at most this many steps, r_0 is at most START times the spread
START = 30.0
ROUNDS = 5
RATE = 0.27  # exponent of the node density; a little below 1/3 for stability
BLEND = 1 / 16  # share of the power grid in equal-error nodes
EARLY_WEIGHT = 30.0  # extra weight of errors at large noise; falls as 1/n above EARLY_STEPS
EARLY_STEPS = 20


def power_nodes(reference: Reference, sde: SDE, num_steps: int, power: float, scale: float) -> Tensor:
    """Power nodes `(num_steps,)`, falling noise levels; `scale` is a multiple of the reference's spread."""
    grid = grids.phi_to_clean(sde, num_steps, power, scale * reference.spread)
    noise_level = sde.noise_level(grid[:-1])
    if num_steps <= FEW_STEPS:
        noise_level[0] = min(noise_level[0].item(), max(START * reference.spread, 1.1 * noise_level[1].item()))
    return noise_level


def equal_error_nodes(reference: Reference, sde: SDE, num_steps: int, early: bool = False) -> Tensor:
    """Equal-error nodes `(num_steps,)`, falling noise levels; with `early`, early nodes."""
    smallest = sde.span().noise_level[1]
    first = r = power_nodes(reference, sde, num_steps, 1.5, 1.0)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    for _ in range(ROUNDS):
        error = fit_weights(reference, sde, r).step_errors
        if early:
            weight = EARLY_WEIGHT * min(1, EARLY_STEPS / num_steps)
            error = error * (1 + weight * r / (r + 4 * reference.spread))
        density = _smoothed((error / (error.mean() + 1e-30) + 1e-3) ** RATE)  # the error may be 0
        place = torch.cat([u[:1], density.cumsum(0) / density.sum()])
        r = _noise_levels(reference, _interpolate(place, _boundaries(reference, r), u), smallest)
    z = torch.cat([_boundaries(reference, first), _boundaries(reference, r)]).unique().flip(0)
    moved, power = (_interpolate(-_boundaries(reference, nodes), u, -z) for nodes in (r, first))
    place = torch.lerp(moved, power, BLEND)
    return _noise_levels(reference, _interpolate(place, z, u), smallest)


def _boundaries(reference: Reference, r: Tensor) -> Tensor:
    """The boundaries of steps from noise levels r to clean data, `(n + 1,)`, in z = asinh(r / softening)."""
    return torch.cat([torch.asinh(r / reference.softening), r.new_zeros(1)])


def _noise_levels(reference: Reference, ends: Tensor, smallest: Tensor) -> Tensor:
    """The noise levels of `_boundaries`, compressed towards the first if the last falls below the SDE's smallest."""
    z = ends[:-1]
    last = torch.asinh(smallest / reference.softening)
    shrink = ((z[0] - last) / (z[0] - z[-1])).clamp(max=1)
    return reference.softening * torch.sinh(z[0] + (z - z[0]) * shrink)


def _smoothed(x: Tensor) -> Tensor:
    padded = torch.cat([x[:1], x, x[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _interpolate(at: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Linear interpolation; `at` must be increasing."""
    return torch.from_numpy(np.interp(wanted.numpy(), at.numpy(), values.numpy()))


def path_error(errors: Tensor) -> float:
    """RMS(errors)^0.75 errors[-1]^0.25 of a table along the reference; smaller is better."""
    return (errors[-1] ** 0.25 * errors.square().mean().sqrt() ** 0.75).item()

r"""Where the tables of a pilot take their steps.

**Powers** of phi, phi_max (1 - u)^power with phi = atan(noise level / sd): with the power and sd that suit the data,
right for few steps.

**Even** nodes, found on the pilot's paths: each step adds an error of its own, and the nodes are moved until all steps
add the same. Where a fitted step k from phi_k to phi_{k+1} misses by c_k when it is corrected and by e_k when it is
predicted, its own error is

    own_k^2 = |c_k|^2 + |w_k / sin phi_{k+1}|^2 |e_k|^2        (|.| the mean over all entries of all samples),

as the next evaluation, of weight w_k in the correction, sees the predicted value: h = (cos^2(phi) u - D) / sin(phi)
changes with y = u cos(phi) by 1 / sin(phi) at little noise, where D hardly changes. With errors of a step like its
third power, nodes are moved in proportion to own^(1/3); a few rounds lead to the same nodes from any start. One in
sixteen keeps its place in a power of phi, lest a hole opens where the flow of the pilot's samples happens to be smooth.

What is wrong at large noise may lead a sample to another basin, and then grows; what is wrong at little noise stays as
it is. Networks differ in how much: **early** nodes are even for own_k (1 + 30 r / (r + 4 spread)) at noise level r;
with more than 20 steps the 30 is less, as errors are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from samplers import grids
from samplers.fitted.least_squares import fit
from samplers.fitted.reference import PilotRun
from scoresde.sde import SDE

FEW, START = 12, 30.0  # up to so many steps they start at most at so many times the spread
ROUNDS = 5
RATE = 0.27  # nodes per unit grow as own^RATE in a round: 1/3, and a little less
KEPT = 1 / 16  # of the nodes
EARLY = 30.0  # what errors at large noise count, up to 20 steps


def power_nodes(run: PilotRun, sde: SDE, num_steps: int, power: float, share: float) -> Tensor:
    """Noise levels `(num_steps,)`, falling: powers of phi with sd a share of the pilot's spread."""
    level = sde.noise_level(grids.phi_to_clean(sde, num_steps, power, share * run.spread)[:-1])
    if num_steps <= FEW:
        level[0] = min(level[0].item(), max(START * run.spread, 1.1 * level[1].item()))
    return level


def even_nodes(run: PilotRun, sde: SDE, num_steps: int, early: bool = False) -> Tensor:
    """Noise levels `(num_steps,)`, falling: all steps of a table fitted on them add the same error."""
    least = sde.noise_level(torch.tensor(sde.t_min, dtype=torch.float64))
    first = r = power_nodes(run, sde, num_steps, 1.5, 1.0)
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    for _ in range(ROUNDS):
        own = fit(run, sde, r).own
        if early:
            own = own * (1 + EARLY * min(1, 20 / num_steps) * r / (r + 4 * run.spread))
        density = _smoothed((own / (own.mean() + 1e-30) + 1e-3) ** RATE)  # own may be 0
        place = torch.cat([u[:1], density.cumsum(0) / density.sum()])
        r = _levels(run, _interpolated(place, _ends(run, r), u), least)
    z = torch.cat([_ends(run, first), _ends(run, r)]).unique().flip(0)
    moved, kept = (_interpolated(-_ends(run, nodes), u, -z) for nodes in (r, first))
    place = torch.lerp(moved, kept, KEPT)
    return _levels(run, _interpolated(place, z, u), least)


def _ends(run: PilotRun, r: Tensor) -> Tensor:
    """Where steps from noise levels r begin and the last ends, in the measure that nodes are moved in, `(n + 1,)`."""
    return torch.cat([torch.asinh(r / run.softening), r.new_zeros(1)])


def _levels(run: PilotRun, ends: Tensor, least: Tensor) -> Tensor:
    """Noise levels of `_ends`, drawn together where they would leave the SDE's range."""
    z, last = ends[:-1], torch.asinh(least / run.softening)
    return run.softening * torch.sinh(z[0] + (z - z[0]) * ((z[0] - last) / (z[0] - z[-1])).clamp(max=1))


def _smoothed(x: Tensor) -> Tensor:
    padded = torch.cat([x[:1], x, x[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _interpolated(at: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Values, known where `at` rises, in between."""
    return torch.from_numpy(np.interp(wanted.numpy(), at.numpy(), values.numpy()))


def score(errors: Tensor) -> float:
    """Of a table's errors along the pilot's paths; mostly those on the way, whose effect on the end is not in it."""
    return (errors[-1] ** 0.25 * errors.square().mean().sqrt() ** 0.75).item()

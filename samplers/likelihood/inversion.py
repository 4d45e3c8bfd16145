r"""Data to noise along the probability flow, and back.

In the velocity integrand (`samplers.integrands`) the flow is dy = h dphi, phi = atan(r / sigma_data), with y = x_0 at
phi = 0. The density of u = x / alpha solves the heat equation in r^2 / 2, and u moves with its flow. So the flow
depends on r through its square alone: y is an even and h an odd function of phi. h(0) = 0 is known without an
evaluation, and so is h(-phi) = -h(phi).

    1. Nodes phi_1 < phi_2 < ... up to t_max, denser towards the data, none below the model's smallest noise level.
    2. Start. Mirrored values at -phi let the method start at its full order. They also cover the interval from phi = 0
       to the first node, in which the model is not defined. The first node is evaluated three times, each time at the
       state that the last correction gave: if the smallest noise level is not small against the details of the data (a
       VE SDE's 0.01), one step to it would make the largest error of all.
    3. Steps. From there on, the Adams-Bashforth method with Adams-Moulton corrections, as in `samplers.trigonometric`.
       The last row only corrects.
    4. The way back to data is the trigonometric solver on nodes phi_max (1 - k / n)^2.

The first nodes are spread out, because a polynomial through nearly coincident nodes extrapolates badly. The order is 4,
down to a floor that the interval below the first node sets (under VE, on modes with standard deviation 0.03, 7e-5 nats
of the log density per dimension).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import Prepared, PreparedTable
from samplers.integrands import VelocityIntegrand, sum_table
from samplers.quadrature import Phi, weights
from samplers.table import Table
from samplers.trigonometric import Trigonometric
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, check_data
from scoresde.sde import SDE, Level

NUM_VALUES = 3  # values of h that a step uses; with the correction the order is 4
MIN_RATIO = 1.1  # smallest ratio of neighbouring phi among the first nodes
FIRST_EVALUATIONS = 3  # how often the first node is evaluated
MIN_EVALUATIONS = FIRST_EVALUATIONS + 2


@final
@dataclass(frozen=True)
class Inversion:
    """The flow from clean data to t_max in a given number of evaluations.

    Attributes:
        table: its rows; the first starts from `scale[0]` x_0, and the last only corrects and arrives at its own level.
        scale: `(n + 1,)` x / y at the level of each row, and where the last arrives.
        totals: `(n,)` weights of the h of all rows in y(t_max) - x_0.
        truncation: `(n,)` weights of the h of all rows in the part from phi = 0 to the first node.
        coarse: `(n,)` as `totals`, through the values of every second node alone. What it gives differs from `totals`
            by several times the error of those.
    """

    table: Table
    scale: Tensor
    totals: Tensor
    truncation: Tensor
    coarse: Tensor


def nodes(sde: SDE, num_nodes: int, sigma_data: float) -> Level:
    """Rising nodes, none below t_min: phi_max (k / num_nodes)^2 for k = 1 .. num_nodes.

    With more than `NUM_VALUES` nodes the first are at least 10 % apart, and the rest evenly spaced in sqrt(phi).
    """
    grid = grids.phi_to_clean(sde, num_nodes, 2.0, sigma_data)
    level = sde.level(grid[:-1].flip(0))
    if num_nodes <= NUM_VALUES:
        return level
    phi = VelocityIntegrand(sigma_data).measure(level.noise_level)
    first = torch.maximum(phi[:NUM_VALUES], phi[0] * MIN_RATIO ** torch.arange(NUM_VALUES))
    if first[-1] >= phi[-1]:  # all noise levels lie far above the scale of the data
        return level
    root = torch.linspace(first[-1].sqrt().item(), phi[-1].sqrt().item(), num_nodes - NUM_VALUES + 1, dtype=phi.dtype)
    return sde.at_noise_level(sigma_data * torch.tan(torch.cat([first[:-1], root**2])))


def inversion(sde: SDE, num_evaluations: int, sigma_data: float) -> Inversion:
    """The rows of `num_evaluations` evaluations, for data with standard deviation `sigma_data`."""
    require(num_evaluations >= MIN_EVALUATIONS, f"num_evaluations={num_evaluations}: need at least {MIN_EVALUATIONS}")
    return inversion_at(nodes(sde, num_evaluations - FIRST_EVALUATIONS + 1, sigma_data), sigma_data)


def inversion_at(level: Level, sigma_data: float) -> Inversion:
    """The rows along rising levels; the first level is evaluated `FIRST_EVALUATIONS` times."""
    integrand = VelocityIntegrand(sigma_data)
    count = len(level)
    visits = [1] * FIRST_EVALUATIONS + list(range(2, count + 1))  # the node of each row
    quadrature = _Quadrature(integrand.measure(level.noise_level), Phi(sigma_data), integrand, len(visits))
    totals = []
    here = torch.zeros(len(visits), dtype=torch.float64)  # weights of all rows in y - x_0 at the current node
    for row, k in enumerate(visits):
        quadrature.newest[k] = row
        before = here
        if k <= NUM_VALUES:
            here = quadrature.integral(range(-k, k + 1), 0, k)
        else:
            here = before + quadrature.integral(range(k - NUM_VALUES, k + 1), k - 1, k)
        next_node = visits[min(row + 1, len(visits) - 1)]
        past = range(max(k - NUM_VALUES + 1, -k), k + 1)
        totals.append(here if next_node == k else here + quadrature.integral(past, k, next_node))
    start = level[torch.tensor(visits) - 1]
    end = Level.join(torch.cat, [start[1:], start[-1:]])
    steps = torch.stack(totals).diff(dim=0, prepend=torch.zeros(1, len(visits), dtype=torch.float64))
    table = sum_table(integrand, start, end, _newest_first(steps))
    few = min(NUM_VALUES, count)
    below = quadrature.integral(range(-few, few + 1), 0, 1)
    scale = torch.cat([integrand.scale(start), integrand.scale(end)[-1:]])
    return Inversion(table, scale, totals[-1], below, _coarse(quadrature, count))


def _coarse(quadrature: _Quadrature, count: int) -> Tensor:
    """Weights of all rows in y - x_0 at the last of `count` nodes, through every second node from the last back."""
    rising = list(range(count, 0, -2))[::-1]
    known = [-node for node in reversed(rising)] + [0, *rising]
    ends = range(len(rising) + 1, len(known))
    parts = [quadrature.integral(known[max(k - NUM_VALUES, 0) : k + 1], known[k - 1], known[k]) for k in ends]
    return torch.stack(parts).sum(0)


class _Quadrature:
    """Integrals of the polynomial through values at nodes, as weights of the rows that hold the values.

    Node 0 is clean data, where h = 0. Node -k is the mirror image of node k, where h has the opposite sign.

    Attributes:
        newest: for each node, the row that has its best value.
    """

    def __init__(self, phi: Tensor, variable: Phi, integrand: VelocityIntegrand, num_rows: int) -> None:
        self._phi = torch.cat([phi.new_zeros(1), phi])
        self._variable = variable
        self._integrand = integrand
        self._num_rows = num_rows
        self.newest: dict[int, int] = {}

    def _phi_of(self, node: int) -> Tensor:
        return self._phi[node] if node >= 0 else -self._phi[-node]

    def integral(self, known: Sequence[int], first: int, last: int) -> Tensor:
        """Weights `(num_rows,)` of the integral from node `first` to node `last`, through the values at known nodes."""
        places = torch.stack([self._phi_of(node) for node in known])[None]
        start = self._phi[first, None]
        end = self._phi[last, None]
        on_rows = torch.zeros(self._num_rows, dtype=torch.float64)
        for node, weight in zip(known, weights(self._integrand, self._variable, places, start, end)[0], strict=True):
            if node:
                on_rows[self.newest[abs(node)]] += weight if node > 0 else -weight
        return on_rows


def _newest_first(on_rows: Tensor) -> Tensor:
    """Weights of the row itself, the one before, ..., from weights of all rows `(n, n)`, lower triangular."""
    rows = len(on_rows)
    width = max((k - int(row.nonzero()[0]) + 1 for k, row in enumerate(on_rows) if bool(row.any())), default=1)
    back = torch.arange(rows)[:, None] - torch.arange(width)
    return torch.where(back >= 0, on_rows.gather(1, back.clamp(min=0)), 0.0)


@torch.no_grad()
def to_noise(
    model: ScoreModel,
    x_0: Tensor,
    cond: Condition = None,
    *,
    num_evaluations: int = 64,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Tensor:
    """The noise x_T `(B, *shape)` from which the probability flow leads to data x_0 `(B, *shape)`. Strong order 4.

    Args:
        model: the model whose flow it is.
        x_0: data in the model's units.
        cond: their conditions, or None.
        num_evaluations: of each sample.
        batch_size: samples at a time; by default as many as need little memory (see docs/python.md).
        on_evaluation: called after each evaluation.
    """
    check_data(model, x_0, cond)
    flow = inversion(model.sde, num_evaluations, model.sigma_data)
    prepared = PreparedTable(flow.table, model, flow.table.level.t)
    return _in_batches(prepared, flow.scale[0].item() * x_0, cond, batch_size, on_evaluation)


@torch.no_grad()
def to_data(
    model: ScoreModel,
    x_T: Tensor,
    cond: Condition = None,
    *,
    num_evaluations: int = 64,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Tensor:
    """The data `(B, *shape)` to which the probability flow leads noise x_T; the inverse of `to_noise`. Order 4."""
    grid = grids.phi_to_clean(model.sde, num_evaluations, 2.0, model.sigma_data)
    prepared = Trigonometric(NUM_VALUES).prepare(model, grid)
    return _in_batches(prepared, x_T, cond, batch_size, on_evaluation)


def _in_batches(
    prepared: Prepared, x: Tensor, cond: Condition, batch_size: int | None, on_evaluation: Callable[[], None]
) -> Tensor:
    """The final states of a deterministic table, batch after batch."""
    nothing = Noise(0, torch.arange(0))
    size = choose_batch_size(batch_size, prepared.model.shape, prepared.model.device)
    with prepared.model.eval_mode():
        ends = [
            prepared(x[part], nothing, condition.take(cond, part), lambda *_: on_evaluation()).x
            for part in batches(len(x), size)
        ]
    return torch.cat(ends)


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""Points between two noises on the great circle through them: `(W, B, *)` of `(B, *)` twice and weights `(W,)`.

    sin((1 - w) omega) / sin(omega) first + sin(w omega) / sin(omega) second, omega the angle between them (Shoemake
    1985): the length of a noise, which a straight line would shrink, is kept. Parallel noises are joined by a line.
    """
    one = first.flatten(1).double()
    two = second.flatten(1).double()
    cosine = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    omega = torch.acos(cosine.clamp(-1, 1))[:, None]
    w = weights.double().reshape(-1, 1, 1)
    straight = torch.sin(omega) < 1e-6
    sine = torch.where(straight, 1.0, torch.sin(omega))
    on_one = torch.where(straight, 1 - w, torch.sin((1 - w) * omega) / sine)
    on_two = torch.where(straight, w, torch.sin(w * omega) / sine)
    return (on_one * one + on_two * two).reshape(len(weights), *first.shape).to(first.dtype)

r"""Data to noise along the probability flow, and back.

In the velocity integrand (`samplers.integrands`) the flow is dy = h dphi, phi = atan(noise level / sd), with y = x_0
at phi = 0.
It depends on the noise level through its square alone (it is the heat equation's characteristic), so that y is an even
and h an odd function of phi: h(0) = 0 is known without an evaluation, and so is h(-phi) = -h(phi). The values on both
sides of 0 start the multistep method at its full order, and integrate over the noise levels below the model's least,
where it cannot be asked; from there on it is Adams and Bashforth's method with Adams and Moulton's correction, as in
`samplers.trigonometric`, on the same nodes phi_max (k / n)^2.

The first node is evaluated three times, at the values that the last correction gave: where the least noise level is not
small against the details of the data (a VE SDE's 0.01), one step to it would be the largest error of the way. There the
first nodes are kept apart, as the polynomial through close ones swings widely below them; what is left of the error
then stays where it is with more steps (under VE, on modes of deviation 0.03: 7e-5 nats per dimension).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers import grids
from samplers.integrands import VelocityIntegrand, level_at, sum_table
from samplers.quadrature import Phi, weights
from samplers.table import Loop, Table
from samplers.trigonometric import Trigonometric
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel, check_data
from scoresde.sde import SDE, Level

NUM_VALUES = 3  # that a step knows; corrected, the order is 4
LEAST_RATIO = 1.1  # of the first nodes
FIRST_EVALUATIONS = 3  # of the first node
FEWEST = FIRST_EVALUATIONS + 2


@final
@dataclass(frozen=True)
class Encoding:
    """The flow from clean data to t_max in some evaluations.

    Attributes:
        table: its rows; the first starts from `scale[0]` x_0.
        scale: `(n + 1,)` x / y at the level of each row, and where the last arrives.
        totals: `(n,)` weights of all h in y(t_max) - x_0, the integral over phi.
        truncation: `(n,)` weights of all h in the integral below the first node alone.
    """

    table: Table
    scale: Tensor
    totals: Tensor
    truncation: Tensor


def nodes(sde: SDE, num_nodes: int, sd: float) -> Level:
    """phi_max (k / num_nodes)^2, k = 1 .. num_nodes, rising; none below t_min, the first ones at least 10 % apart."""
    level = sde.level(grids.phi_to_clean(sde, num_nodes, 2.0, sd)[:-1].flip(0))
    if num_nodes <= NUM_VALUES:
        return level
    phi = VelocityIntegrand(sd).measure(level.noise_level)
    first = torch.maximum(phi[:NUM_VALUES], phi[0] * LEAST_RATIO ** torch.arange(NUM_VALUES))
    root = torch.linspace(first[-1].sqrt().item(), phi[-1].sqrt().item(), num_nodes - NUM_VALUES + 1, dtype=phi.dtype)
    return level_at(sde, sd * torch.tan(torch.cat([first[:-1], root**2])))


def encoding(sde: SDE, num_evaluations: int, sd: float) -> Encoding:
    """The rows of `num_evaluations` evaluations, for data of scale `sd`."""
    require(num_evaluations >= FEWEST, f"num_evaluations={num_evaluations}: need at least {FEWEST}")
    return encoding_at(nodes(sde, num_evaluations - FIRST_EVALUATIONS + 1, sd), sd)


def encoding_at(level: Level, sd: float) -> Encoding:
    """The rows along rising levels, of which the first is evaluated `FIRST_EVALUATIONS` times."""
    integrand, variable, count = VelocityIntegrand(sd), Phi(sd), len(level.t)
    phi = torch.cat([torch.zeros(1, dtype=torch.float64), integrand.measure(level.noise_level)])
    visits = [1] * FIRST_EVALUATIONS + list(range(2, count + 1))  # the node of each row
    rows = len(visits)
    newest: dict[int, int] = {}  # the row that has a node's best value

    def integral(known: Iterable[int], first: int, last: int) -> Tensor:
        """Weights `(rows,)` of the integral between two nodes through values at nodes, -k for the image of node k."""
        known = list(known)
        places = torch.stack([phi[abs(k)] * (1 if k > 0 else -1) for k in known])[None]
        on_rows = torch.zeros(rows, dtype=torch.float64)
        for k, weight in zip(
            known, weights(integrand, variable, places, phi[first, None], phi[last, None])[0], strict=True
        ):
            if k:
                on_rows[newest[abs(k)]] += weight if k > 0 else -weight
        return on_rows

    totals, here = [], torch.zeros(rows, dtype=torch.float64)
    for row, k in enumerate(visits):
        newest[k] = row
        before = here
        if k <= NUM_VALUES:
            here = integral(range(-k, k + 1), 0, k)
        else:
            here = before + integral(range(k - NUM_VALUES, k + 1), k - 1, k)
        after = visits[min(row + 1, rows - 1)]
        past = range(max(k - NUM_VALUES + 1, -k), k + 1)
        totals.append(here if after == k else here + integral(past, k, after))
    start = Level(*(part[torch.tensor(visits) - 1] for part in level))
    end = Level(*(torch.cat([part[1:], part[-1:]]) for part in start))
    table = sum_table(
        integrand, start, end, _newest_first(torch.stack(totals).diff(dim=0, prepend=torch.zeros(1, rows)))
    )
    few = min(NUM_VALUES, count)
    below = integral(range(-few, few + 1), 0, 1)
    return Encoding(table, torch.cat([integrand.scale(start), integrand.scale(end)[-1:]]), totals[-1], below)


def _newest_first(on_rows: Tensor) -> Tensor:
    """Weights of the row itself, the one before, ..., from weights of all rows `(n, n)`, lower triangular."""
    rows = len(on_rows)
    width = max((k - int(row.nonzero()[0]) + 1 for k, row in enumerate(on_rows) if bool(row.any())), default=1)
    back = torch.arange(rows)[:, None] - torch.arange(width)
    return torch.where(back >= 0, on_rows.gather(1, back.clamp(min=0)), 0.0)


@torch.no_grad()
def encode(
    model: ScoreModel,
    x_0: Tensor,
    cond: Tensor | None = None,
    *,
    num_evaluations: int = 64,
    sd: float = 0.7,
    batch_size: int = 500,
    tell: Callable[[], None] = lambda: None,
) -> Tensor:
    """The noise x_T `(B, *shape)` that the probability flow leads to data x_0 `(B, *shape)`. Strong order 4.

    Args:
        model, x_0, cond: whose flow, from which data in the model's units, under which conditions.
        num_evaluations: of each batch.
        sd: the scale of the data.
        batch_size: samples at a time.
        tell: called after each evaluation.
    """
    check_data(model, x_0, cond)
    way = encoding(model.sde, num_evaluations, sd)
    return _in_batches(way.table, model, way.scale[0].item() * x_0, cond, batch_size, tell)


@torch.no_grad()
def decode(
    model: ScoreModel,
    x_T: Tensor,
    cond: Tensor | None = None,
    *,
    num_evaluations: int = 64,
    sd: float = 0.7,
    batch_size: int = 500,
    tell: Callable[[], None] = lambda: None,
) -> Tensor:
    """The data `(B, *shape)` to which the probability flow leads noise x_T; the inverse of `encode`. Strong order 4."""
    grid = grids.phi_to_clean(model.sde, num_evaluations, 2.0, sd)
    return _in_batches(Trigonometric(NUM_VALUES, sd).table(model.sde, grid), model, x_T, cond, batch_size, tell)


def _in_batches(
    table: Table, model: ScoreModel, x: Tensor, cond: Tensor | None, batch_size: int, tell: Callable[[], None]
) -> Tensor:
    """Where a table without noise leads."""
    loop, nothing, ends = Loop(table, model, x[:1]), Noise(0, torch.arange(1)), []
    with model.eval_mode():
        for first in range(0, len(x), batch_size):
            part = slice(first, first + batch_size)
            ends.append(loop(x[part], nothing, None if cond is None else cond[part], lambda *_: tell()))
    return torch.cat(ends)


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    r"""Points between two noises on the great circle through them: `(W, B, *)` of `(B, *)` twice and weights `(W,)`.

    sin((1 - w) omega) / sin(omega) first + sin(w omega) / sin(omega) second, omega the angle between them (Shoemake
    1985): the length of a noise, which a straight line would shrink, is kept. Parallel noises are joined by a line.
    """
    one, two = first.flatten(1).double(), second.flatten(1).double()
    cosine = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    omega = torch.acos(cosine.clamp(-1, 1))[:, None]
    w = weights.double().reshape(-1, 1, 1)
    straight = torch.sin(omega) < 1e-6
    sine = torch.where(straight, 1.0, torch.sin(omega))
    on_one = torch.where(straight, 1 - w, torch.sin((1 - w) * omega) / sine)
    on_two = torch.where(straight, w, torch.sin(w * omega) / sine)
    return (on_one * one + on_two * two).reshape(len(weights), *first.shape).to(first.dtype)

r"""Every linear solver is a table of numbers, and one loop runs them all.

On a given grid a linear solver computes, row by row,

    y_{k+1} = a_k y_k + sum_j b_kj h_{k-j} + c_k z_k + d_k z_{k-1},        h_k = p_k D(y_k, t_k) + q_k y_k,

where y is the state x_t, D the denoiser, h the combination of D and y that the solver treats as smooth (D itself, the
noise, the velocity), and z_k fresh standard normal noise. A solver with several stages has several rows a step: later
stages rebuild the step's initial state from the current state and earlier h, since all are linear combinations. A table
is computed once, in float64, on the host; it can be printed and tested as what it is; and its number of rows *is* the
number of evaluations of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde._batches import batches
from scoresde.condition import Condition
from scoresde.noise import BLOCK, NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

Callback = Callable[[int, Level, Tensor, Tensor], None]
"""Called after each evaluation with the row, its level, x_t and x0_hat."""

Projection = Callable[[int, Level, Tensor], Tensor]
"""Called after each row with the row, the level at which it arrives, and the state there; returns the new state."""


@final
@dataclass(frozen=True)
class Table:
    """The rows of a solver on a grid; float64 tensors on the host.

    Attributes:
        level: where each row evaluates the model, parts of shape `(n,)`.
        arrival: the level of the state after each row.
        a: `(n,)` factor of the state.
        b: `(n, H)` factors of h_k, h_{k-1}, ..., h_{k-H+1}.
        c: `(n,)` factor of the row's own noise.
        d: `(n,)` factor of the noise of the row before; before the first row it is that of x_T.
        p, q: `(n,)` factors of D and of the state in h.
    """

    level: Level
    arrival: Level
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    p: Tensor
    q: Tensor

    def __len__(self) -> int:
        """Number of rows: the number of evaluations of the model."""
        return len(self.a)

    def rows(self, index: slice) -> Table:
        """Some of the rows."""
        return Table(self.level[index], self.arrival[index], *(getattr(self, name)[index] for name in "abcdpq"))

    def __str__(self) -> str:
        history = "".join(f"{f'b_k-{j}' if j else 'b_k':>12}" for j in range(self.b.shape[1]))
        lines = [f"{'row':>5}{'t':>12}{'noise level':>12}{'a':>12}{history}{'c':>12}{'d':>12}{'p':>12}{'q':>12}"]
        columns = [self.level.t, self.level.noise_level, self.a, *self.b.T, self.c, self.d, self.p, self.q]
        for k, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            lines.append(f"{k:>5}" + "".join(f"{value:>12.5g}" for value in row))
        return "\n".join(lines)


def denoiser_table(level: Level, arrival: Level, a: Tensor, b: Tensor, c: Tensor) -> Table:
    """A table whose rows use D at their own time only: y' = a y + b D + c z."""
    return Table(level, arrival, a, b[:, None], c, torch.zeros_like(a), torch.ones_like(a), torch.zeros_like(a))


def clean_table(level: Level) -> Table:
    """One row, from a level with parts of shape `(1,)` to clean data by the denoiser itself: y' = D."""
    zero = torch.zeros_like(level.t)
    return denoiser_table(level, Level.clean(), zero, zero + 1, zero)


def concatenate(tables: Sequence[Table]) -> Table:
    """Tables one after the other. No row reads the history of another table: shorter histories are filled with 0."""
    return _combined(tables, torch.cat)


def interleave(tables: Sequence[Table]) -> Table:
    """Row 0 of each table, then row 1 of each, and so on."""
    return _combined(tables, lambda columns: torch.stack(columns, 1).flatten(0, 1))


def _combined(tables: Sequence[Table], combine: Callable[[list[Tensor]], Tensor]) -> Table:
    width = max(table.b.shape[1] for table in tables)
    b = [torch.nn.functional.pad(table.b, (0, width - table.b.shape[1])) for table in tables]
    a, c, d, p, q = (combine([getattr(table, name) for table in tables]) for name in "acdpq")
    level = Level.join(combine, [table.level for table in tables])
    arrival = Level.join(combine, [table.arrival for table in tables])
    return Table(level, arrival, a, combine(b), c, d, p, q)


@final
class Loop:
    """The one loop of all linear samplers: a table made ready to run on a model, for batches of one shape.

    The model's factors (D = c_skip y + c_out F) are folded into the table's, so that a row costs two operations on top
    of the network, one more for each earlier value that it reads, one for noise and two for a value that is read later.
    Factors are Python numbers and times lie on the device before the loop starts: nothing waits for the device.

    Args:
        table: the rows.
        model: the model that they evaluate.
        like: a batch `(B, *shape)`.
        first_row: number of the first row, for the callback, the projection and the draws of noise.
    """

    def __init__(self, table: Table, model: ScoreModel, like: Tensor, first_row: int = 0) -> None:
        on_grid = model.on_grid(table.level, like)
        on_y = table.p * on_grid.c_skip + table.q  # h = on_y y + on_network F
        on_network = table.p * on_grid.c_out
        self.table = table
        self.model = model
        self.first_row = first_row
        self._network = on_grid.network
        self._c_skip = on_grid.c_skip.tolist()
        self._c_out = on_grid.c_out.tolist()
        self._level = table.level.to(like.device, like.dtype)
        self._arrival = table.arrival.to(like.device, like.dtype)
        drawn = _drawn(table)
        self._rows = list(
            zip(
                (table.a + table.b[:, 0] * on_y).tolist(),
                (table.b[:, 0] * on_network).tolist(),
                table.b[:, 1:].tolist(),
                table.c.tolist(),
                table.d.tolist(),
                drawn[1:],
                _read_later(table.b),
                on_y.tolist(),
                on_network.tolist(),
                strict=True,
            )
        )
        self._draws = [first_row + k for k, wanted in enumerate(drawn) if wanted]
        self._reads_x_T = drawn[0]

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Condition = None,
        callback: Callback | None = None,
        project: Projection | None = None,
        history: Sequence[Tensor] = (),
    ) -> Tensor:
        """Runs the table from x_T `(B, *shape)`.

        Args:
            x_T: the initial state.
            noise: what the rows draw from.
            cond: what the model is conditioned on.
            callback: called after each evaluation; D is computed for it.
            project: changes the state after each row.
            history: values of h before the first row, newest first.
        """
        noises = _in_blocks(noise, self._draws, x_T)
        known = list(history)
        network = self._network
        y = x_T
        width = self.table.b.shape[1] - 1
        z = next(noises) if self._reads_x_T else x_T  # if no row reads it, any tensor serves as a placeholder
        for k, (a, b, earlier, c, d, draws, read_later, h_y, h_network) in enumerate(self._rows):
            output = network(k, y, cond)
            if callback is not None:
                x0_hat = torch.mul(y, self._c_skip[k]).add_(output, alpha=self._c_out[k])
                callback(self.first_row + k, self._level[k], y, x0_hat)
            after = torch.mul(y, a)
            if b != 0:
                after.add_(output, alpha=b)
            if width:
                for b_j, h in zip(earlier, known, strict=False):
                    if b_j != 0:
                        after.add_(h, alpha=b_j)
                # if h is never read, any tensor serves as a placeholder
                h = torch.mul(y, h_y).add_(output, alpha=h_network) if read_later else output
                known = [h, *known[: width - 1]]
            before = z
            if draws:
                z = next(noises)
                after.add_(z, alpha=c)
            if d != 0:
                after.add_(before, alpha=d)
            y = after if project is None else project(self.first_row + k, self._arrival[k], after)
        return y


def _drawn(table: Table) -> list[bool]:
    """Whether the noise of x_T, and then that of each row, is read by the row or by the next."""
    own = torch.nn.functional.pad(table.c != 0, (1, 0))
    by_next = torch.nn.functional.pad(table.d != 0, (0, 1))
    return (own | by_next).tolist()


def _read_later(b: Tensor) -> list[bool]:
    """Whether the value h of a row is read by a later one."""
    read = torch.zeros(len(b), dtype=torch.bool)
    for j in range(1, b.shape[1]):
        read[: len(b) - j] |= b[j:, j] != 0
    return read.tolist()


def _in_blocks(noise: NoiseSource, draws: list[int], like: Tensor) -> Iterator[Tensor]:
    """The draws one after the other, several computed at a time if they are small."""
    if not draws:
        return
    size = max(1, BLOCK // max(1, like.numel()))
    for part in batches(len(draws), size):
        yield from noise.normals(draws[part], tuple(like.shape[1:]), like.dtype)

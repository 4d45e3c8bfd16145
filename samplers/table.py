r"""Every linear solver is a table of numbers, and one loop runs them all.

On a given grid a linear solver computes, row by row,

    y_{k+1} = a_k y_k + sum_j b_kj h_{k-j} + c_k z_k,        h_k = p_k D(y_k, t_k) + q_k y_k,

where D is the denoiser, h the integrand of it in which the solver is smooth (D itself, the noise, the velocity), and
z_k
fresh standard normal noise. A solver with several stages has several rows a step: it recovers what it needs of its
state from the stage, which is linear in it. A table is computed once, in float64, on the host; it can be printed and
tested as what it is; and its number of rows *is* the number of network evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.noise import BLOCK, NoiseSource
from scoresde.score_model import ScoreModel
from scoresde.sde import Level

Callback = Callable[[int, Level, Tensor, Tensor], None]
"""Called after each evaluation with the row, its level, x_t and x0_hat."""


@final
@dataclass(frozen=True)
class Table:
    """The rows of a solver on a grid; float64 tensors on the host.

    Attributes:
        level: where each row evaluates the model, parts of shape `(n,)`.
        a: `(n,)` factor of the state.
        b: `(n, H)` factors of h_k, h_{k-1}, ..., h_{k-H+1}.
        c: `(n,)` standard deviation of the added noise.
        p, q: `(n,)` factors of D and of the state in h.
    """

    level: Level
    a: Tensor
    b: Tensor
    c: Tensor
    p: Tensor
    q: Tensor

    def __len__(self) -> int:
        """Number of rows: the number of function evaluations."""
        return len(self.a)

    def rows(self, index: slice) -> Table:
        """Some of the rows."""
        return Table(self.level.at(index), *(getattr(self, name)[index] for name in "abcpq"))

    def __str__(self) -> str:
        history = "".join(f"{f'b_k-{j}' if j else 'b_k':>12}" for j in range(self.b.shape[1]))
        lines = [f"{'row':>5}{'t':>12}{'noise level':>12}{'a':>12}{history}{'c':>12}{'p':>12}{'q':>12}"]
        columns = [self.level.t, self.level.noise_level, self.a, *self.b.T, self.c, self.p, self.q]
        for k, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            lines.append(f"{k:>5}" + "".join(f"{value:>12.5g}" for value in row))
        return "\n".join(lines)


def denoiser_table(level: Level, a: Tensor, b: Tensor, c: Tensor) -> Table:
    """A table whose rows use D at their own time only: y' = a y + b D + c z."""
    return Table(level, a, b[:, None], c, torch.ones_like(a), torch.zeros_like(a))


def concatenate(tables: list[Table]) -> Table:
    """Tables one after the other. No row reads the history of another table: shorter histories are filled with 0."""
    width = max(table.b.shape[1] for table in tables)
    level = Level(*(torch.cat(parts) for parts in zip(*(table.level for table in tables), strict=True)))
    b = torch.cat([torch.nn.functional.pad(table.b, (0, width - table.b.shape[1])) for table in tables])
    a, c, p, q = (torch.cat([getattr(table, name) for table in tables]) for name in "acpq")
    return Table(level, a, b, c, p, q)


@final
class Loop:
    """The one loop of all linear samplers: a table made ready to run on a model, for batches of one shape.

    The model's factors (D = skip y + out F) are folded into the table's, so that a row costs two operations on top of
    the network, one more for each earlier value that it reads, one for noise and two for a value that is read later.
    Factors are Python numbers and times lie on the device before the loop starts: nothing waits for the device.

    Args:
        table, model: what is run, on what.
        like: a batch `(B, *shape)`.
        first_row: number of the first row, for the callback and the draws of noise.
    """

    def __init__(self, table: Table, model: ScoreModel, like: Tensor, first_row: int = 0) -> None:
        along = model.on_grid(table.level, like)
        on_y, on_raw = table.p * along.skip + table.q, table.p * along.out  # h = on_y y + on_raw F
        self.table, self.model, self.first_row = table, model, first_row
        self._raw, self._skip, self._out = along.raw, along.skip.tolist(), along.out.tolist()
        self._level = table.level.like(like)
        self._rows = list(
            zip(
                (table.a + table.b[:, 0] * on_y).tolist(),
                (table.b[:, 0] * on_raw).tolist(),
                table.b[:, 1:].tolist(),
                table.c.tolist(),
                _read_later(table.b),
                on_y.tolist(),
                on_raw.tolist(),
                strict=True,
            )
        )
        self._draws = [first_row + k + 1 for k, c in enumerate(table.c.tolist()) if c != 0]

    def __call__(
        self,
        x_T: Tensor,
        noise: NoiseSource,
        cond: Tensor | None = None,
        callback: Callback | None = None,
        history: Sequence[Tensor] = (),
    ) -> Tensor:
        """Runs the table from x_T `(B, *shape)`.

        Args:
            x_T, noise, cond: from where, with what.
            callback: called after each evaluation; D is computed for it.
            history: values of h before the first row, newest first.
        """
        noises, known = _in_blocks(noise, self._draws, x_T), list(history)
        raw_at, y, width = self._raw, x_T, self.table.b.shape[1] - 1
        for k, (a, b, earlier, c, read_later, h_y, h_raw) in enumerate(self._rows):
            raw = raw_at(k, y, cond)
            if callback is not None:
                x0_hat = torch.mul(y, self._skip[k]).add_(raw, alpha=self._out[k])
                callback(self.first_row + k, self._level.at(k), y, x0_hat)
            after = torch.mul(y, a)
            if b != 0:
                after.add_(raw, alpha=b)
            if width:
                for b_j, h in zip(earlier, known, strict=False):
                    if b_j != 0:
                        after.add_(h, alpha=b_j)
                # where nobody reads h, anything may hold its place
                h = torch.mul(y, h_y).add_(raw, alpha=h_raw) if read_later else raw
                known = [h, *known[: width - 1]]
            if c != 0:
                after.add_(next(noises), alpha=c)
            y = after
        return y


def run(
    table: Table,
    model: ScoreModel,
    x_T: Tensor,
    noise: NoiseSource,
    cond: Tensor | None = None,
    callback: Callback | None = None,
    first_row: int = 0,
    history: Sequence[Tensor] = (),
) -> Tensor:
    """Runs a table once from x_T `(B, *shape)`: see `Loop`."""
    return Loop(table, model, x_T, first_row)(x_T, noise, cond, callback, history)


def _read_later(b: Tensor) -> list[bool]:
    """Whether the value h of a row is read by a later one."""
    read = torch.zeros(len(b), dtype=torch.bool)
    for j in range(1, b.shape[1]):
        read[: len(b) - j] |= b[j:, j] != 0
    return read.tolist()


def _in_blocks(noise: NoiseSource, draws: list[int], like: Tensor) -> Iterator[Tensor]:
    """The draws one after the other, several computed at a time where they are small."""
    size = max(1, BLOCK // max(1, like.numel()))
    for first in range(0, len(draws), size):
        yield from noise.normals(draws[first : first + size], tuple(like.shape[1:]), like.dtype)

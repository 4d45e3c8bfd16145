r"""Every linear solver is a table of numbers, and one loop runs them all.

On a given grid a linear solver computes, row by row,

    y_{k+1} = a_k y_k + sum_j b_kj h_{k-j} + c_k z_k,        h_k = p_k D(y_k, t_k) + q_k y_k,

where D is the denoiser, h the view of it in which the solver is smooth (D itself, the noise, the velocity), and z_k
fresh standard normal noise. A solver with several stages has several rows a step: it recovers what it needs of its
state from the stage, which is linear in it. A table is computed once, in float64, on the host; it can be printed and
tested as what it is; and its number of rows *is* the number of network evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samplers.noise import Noise
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


def run(
    table: Table,
    model: ScoreModel,
    x_T: Tensor,
    noise: Noise,
    cond: Tensor | None = None,
    callback: Callback | None = None,
    first_row: int = 0,
) -> Tensor:
    """Runs a table from x_T `(B, *shape)`; the one loop of all linear samplers. Rows count from `first_row`.

    Factors are Python numbers and levels lie on the device before the loop starts, so nothing waits for the device.
    """
    y = x_T
    level = table.level.like(y)
    a, b, c, p, q = (part.tolist() for part in (table.a, table.b, table.c, table.p, table.q))
    history: list[Tensor] = []
    for k in range(len(table)):
        here = level.at(k)
        x0_hat = model.denoise_at(y, here, cond)
        if callback is not None:
            callback(first_row + k, here, y, x0_hat)
        h = x0_hat if (p[k], q[k]) == (1, 0) else torch.mul(x0_hat, p[k]).add_(y, alpha=q[k])
        history = [h, *history[: len(b[k]) - 1]]
        y = torch.mul(y, a[k])
        for b_kj, h_j in zip(b[k], history, strict=False):
            if b_kj != 0:
                y.add_(h_j, alpha=b_kj)
        if c[k] != 0:
            y.add_(noise.normal(first_row + k + 1, tuple(y.shape[1:]), y.dtype), alpha=c[k])
    return y

"""The paths of the SDEs, where each grid puts its steps, and the table of a solver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from samplers import (
    TableSampler,
    karras,
    phi_to_clean,
    power_phi,
    quadratic_time,
    uniform_log_snr,
    uniform_time,
    vp_quadratic,
)
from scoresde import plots
from scoresde.app.config import load_config, sdes
from scoresde.app.figures.subject import FigureOptions, Subject
from scoresde.errors import require
from scoresde.registry import construct
from scoresde.sde import SDE
from sde_configs import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = 200
STEPS = 20  # of the grids
EVALUATIONS = 8
SAMPLER = "unipc"
GRIDS = (uniform_time, quadratic_time, vp_quadratic, uniform_log_snr, karras, power_phi, phi_to_clean)


@torch.no_grad()
def draw(subject: Subject, options: FigureOptions) -> Figure:
    """All SDEs, or the one of a checkpoint; grids and table under the one that is asked for."""
    sde = subject.sde
    name = options.sampler or SAMPLER
    if subject.trained is None:
        shown = {key: construct(load_config(key, None).sde, SDE, "config.sde") for key in sdes()}
    else:
        shown = {type(sde).__name__: sde}
    times = {key: torch.linspace(s.t_min, s.t_max, TIMES, dtype=torch.float64) for key, s in shown.items()}
    levels = {key: shown[key].level(t) for key, t in times.items()}
    quantities = {
        "$\\alpha$": {key: level.alpha for key, level in levels.items()},
        "$\\sigma$ (data units)": {key: level.sigma for key, level in levels.items()},
        "$g^2$, of VP $\\beta$ (1 / time)": {key: shown[key].diffusion(t) ** 2 for key, t in times.items()},
        "log-SNR $2\\log(\\alpha/\\sigma)$ (nats)": {key: level.log_snr for key, level in levels.items()},
    }
    count = EVALUATIONS if options.num_steps is None else options.num_steps
    sampler = build.build_sampler(subject.config, name, None)
    require(
        isinstance(sampler, TableSampler),
        f"sampler={name!r}: chooses its steps and is no table; ask for another, such as --sampler unipc",
    )
    assert isinstance(sampler, TableSampler)
    table = sampler.table(subject.model, sampler.grid(subject.model, count))
    width = table.b.shape[1]
    columns = ["a", "b", *(f"$b_{{-{j}}}$" for j in range(1, width)), "c", "d", "p", "q"]
    numbers = torch.cat([torch.stack([table.a, *table.b.T, table.c, table.d, table.p, table.q], 1)])
    grids = {grid.__name__: sde.noise_level(_noisy(grid(sde, STEPS))) for grid in GRIDS}
    titles = (f"{STEPS} steps of each grid, {type(sde).__name__}", f"table of {name}, {count} steps")
    shares = {key: t / t[-1] for key, t in times.items()}
    logarithmic = list(quantities)[1:3]
    return plots.schedules(shares, quantities, logarithmic, grids, numbers, columns, titles)


def _noisy(grid: torch.Tensor) -> torch.Tensor:
    return grid[grid > 0]

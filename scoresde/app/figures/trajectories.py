"""Paths from data to noise and back, and the density of x_t on a line through time under three SDEs.

Over the plane a state is divided by sqrt(alpha^2 + sigma^2), so that paths of all SDEs fit into one frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samplers import Ancestral, DPMSolver, PredictorCorrector, Sampler, power_phi, sample
from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Plane, Subject
from scoresde.errors import require
from scoresde.named_sdes import VESDE, VPSDE, SubVPSDE
from scoresde.sde import SDE, Level, transition
from scoresde.targets import GaussianMixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATHS = 5
STEPS = 60
MOVED = 2  # of them, whose predictor and corrector moves are shown
GROUND = 600  # samples of the data that are shown behind
QUANTILES = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Forward paths, reverse-SDE paths, probability-flow paths, and predictor and corrector moves."""
    count = PATHS if options.num_samples is None else options.num_samples
    steps = STEPS if options.num_steps is None else options.num_steps
    require(count >= 1, f"num_samples={count}: need at least 1")
    require(steps >= 6, f"num_steps={steps}: need at least 6")
    plane = Plane(subject.train)
    labels = subject.labels(count)

    def drawn(sampler: Sampler, num_steps: int) -> Tensor:
        seen: dict[int, list[Tensor]] = {}  # by row: batch after batch, as the plane shows them

        def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
            seen.setdefault(row, []).append(_seen(plane, x_t, level))

        end, _ = sample(
            subject.model,
            sampler,
            count,
            grid=_grid(subject.sde, num_steps),
            cond=labels,
            seed=options.seed,
            batch_size=subject.batch_size(),
            callback=watch,
        )
        return torch.stack([torch.cat(parts) for parts in seen.values()] + [_seen(plane, end)])

    corrected = drawn(PredictorCorrector(), max(6, steps // 3))[:, :MOVED]
    kinds = torch.arange(len(corrected) - 1) % 2
    panels = [
        plots.Paths("forward: data to noise", _forward(subject, plane, count, steps, options.seed)),
        plots.Paths("reverse SDE", drawn(Ancestral(), steps)),
        plots.Paths("probability flow", drawn(DPMSolver(2), steps)),
        plots.Paths("predictor-corrector", corrected, kinds, ("predictor", "corrector")),
    ]
    shown = subject.train.batch(torch.arange(min(GROUND, len(subject.train))))[0]
    ground = None if plane.directions.shape[0] == 1 else plane.coordinates(shown, torch.ones(()))
    scaled = "$x_t\\,/\\,\\sqrt{\\alpha^2 + \\sigma^2}$"
    return plots.trajectories(panels, [_time_space(name, sde) for name, sde in LINES.items()], scaled, ground)


# the range of VE is that of the data, as its docstring advises
LINES: dict[str, SDE] = {"VP": VPSDE(), "sub-VP": SubVPSDE(), "VE": VESDE(sigma_max=3.0)}


def _grid(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in the angle between data and noise, where what is seen moves evenly."""
    return power_phi(sde, num_steps, 1.0, 0.7)


def _seen(plane: Plane, x: Tensor, level: Level | None = None) -> Tensor:
    """States as the plane shows them, divided by the scale of their level; clean data as they are."""
    if level is None:
        return plane.coordinates(x, torch.ones(()))
    scale = (level.alpha**2 + level.sigma**2).sqrt()
    return plane.coordinates(x / scale.item(), level.alpha / scale)


def _forward(subject: Subject, plane: Plane, count: int, steps: int, seed: int) -> Tensor:
    """Paths of the forward SDE from training samples, by its exact transitions: `(steps + 1, count, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(subject.train), (count,), generator=generator)
    x = subject.train.batch(index)[0].double()
    grid = _grid(subject.sde, steps)[:-1].flip(0)
    levels = subject.sde.level(grid)
    x = levels.alpha[0] * x + levels.sigma[0] * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    states = [_seen(plane, x, levels[0])]
    for k in range(1, len(grid)):
        ratio, std = transition(levels[k - 1], levels[k])
        x = ratio * x + std * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        states.append(_seen(plane, x, levels[k]))
    return torch.stack(states)


def _time_space(name: str, sde: SDE) -> plots.TimeSpace:
    """A mixture on a line through time. The flow keeps quantiles, so that its paths are those of the density."""
    weights = torch.tensor([0.35, 0.65], dtype=torch.float64)
    means = torch.tensor([[-1.0], [1.0]]).double()
    target = GaussianMixture(weights, means, torch.full((2,), 0.02, dtype=torch.float64))
    level = sde.level(torch.linspace(sde.t_min, sde.t_max, 160, dtype=torch.float64))
    far = 2.4 * max(sde.prior_std(), 0.75)
    x = torch.linspace(-far, far, 400, dtype=torch.float64)
    wide = torch.linspace(-3 * far, 3 * far, 6000, dtype=torch.float64)
    density = []
    paths = []
    for k in range(len(level.t)):
        at = level[k]
        density.append(target.log_prob(x[:, None], at.alpha, at.sigma).exp())
        below = target.log_prob(wide[:, None], at.alpha, at.sigma).exp().cumsum(0)
        paths.append(wide[torch.searchsorted(below / below[-1], QUANTILES).clamp(max=len(wide) - 1)])
    share = level.t / sde.t_max
    return plots.TimeSpace(f"{name}: density of $x_t$, its flow", share, x, torch.stack(density, 1), torch.stack(paths))

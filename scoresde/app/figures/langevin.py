r"""Plain against annealed Langevin dynamics on a mixture of unequal weights, by the exact score.

Where two modes lie far apart, the score at one knows nothing of the weight of the other: log w drops out of the
gradient. So a chain at the level of the data ends in the mode whose basin it starts in, and the weights that it finds
are the shares of the start in the basins. At large noise the modes overlap and the score knows the weights; annealing
carries them down (Song and Ermon 2019, section 3.2.2).

Both are counted by the posterior p(k | x_t), whose mean is the weight w_k at every level where x_t ~ p_t.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from samplers import AnnealedLangevin, Trajectory, power_phi, sample
from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Subject
from scoresde.errors import require
from scoresde.models.exact import ExactScoreModel
from scoresde.noise import Noise
from scoresde.sde import SDE, Level
from scoresde.targets import Gaussian, GaussianMixture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = torch.tensor([0.7, 0.2, 0.1])
DEVIATION = 0.15
ANGLES = torch.tensor([0.5, 7 / 6, 11 / 6]) * math.pi  # of the modes, on the unit circle
DEVIATION_OF_ALL = 0.7  # of an entry, about: the levels are densest where the modes part
START = 1.5  # deviation of the plain chain's start
STEP = 0.2  # of the plain chain, in variances of a mode
NUM_SAMPLES = 2000
NUM_STEPS = 500
POINTS = 100
FRAMES = 12
POINTS_OF_FRAME = 500


class Chain(NamedTuple):
    """States `(n, samples, 2)` of a chain, and the mode weights at each of them `(n, modes)`."""

    x: Tensor
    weights: Tensor


def target() -> GaussianMixture:
    """Three modes as far from each other as from the start, with weights 0.7, 0.2 and 0.1."""
    means = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
    return GaussianMixture(WEIGHTS, means, torch.full((len(WEIGHTS),), DEVIATION**2))


def responsibilities(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """p(k | x_t) of each mode, `(B, modes)`."""
    mixture = target()
    parts = [
        Gaussian(mean, variance).log_prob(x, alpha, sigma) + weight.log()
        for weight, mean, variance in zip(mixture.weights, mixture.means, mixture.variances, strict=True)
    ]
    return torch.stack(parts, 1).softmax(1)


def share_of_basins() -> Tensor:
    """The share of the start N(0, START^2 I) that lies in each basin, by quadrature: what a plain chain ends with.

    A point belongs to the mode that is most likely there.
    """
    axis = torch.linspace(-5 * START, 5 * START, 501)
    points = torch.cartesian_prod(axis, axis)
    weight = (-points.square().sum(1) / (2 * START**2)).softmax(0)
    basin = responsibilities(points, torch.ones(()), torch.zeros(())).argmax(1)
    return torch.zeros(len(WEIGHTS)).index_add(0, basin, weight)


def plain(count: int, num_steps: int, seed: int) -> Chain:
    """x' = x + e score(x) + sqrt(2 e) z at the level of the data, from a broad start."""
    noise = Noise(seed, torch.arange(count))
    step = STEP * DEVIATION**2
    x = START * noise.normal(0, (2,))
    mixture = target()
    states = []
    one = torch.ones(())
    zero = torch.zeros(())
    for k in range(num_steps):
        states.append(x)
        x = x + step * mixture.score(x, one, zero.clamp(min=1e-3)) + (2 * step) ** 0.5 * noise.normal(k + 1, (2,))
    states.append(x)
    return Chain(torch.stack(states), torch.stack([responsibilities(x, one, zero).mean(0) for x in states]))


def annealed(sde: SDE, count: int, num_steps: int, seed: int) -> Chain:
    """Langevin steps at falling noise levels of an SDE; states over sqrt(alpha^2 + sigma^2)."""
    kept = Trajectory()
    end, _ = sample(
        ExactScoreModel(target(), sde),
        AnnealedLangevin(),
        count,
        grid=power_phi(sde, num_steps, 1.0, DEVIATION_OF_ALL),
        seed=seed,
        callback=kept,
        batch_size=count,
    )
    levels = Level.join(torch.cat, [sde.level(kept.t), Level.clean(kept.t.dtype)])
    states = [*kept.x_t, end]
    each = [levels[k] for k in range(len(states))]
    weights = [responsibilities(x, at.alpha, at.sigma).mean(0) for x, at in zip(states, each, strict=True)]
    seen = [x / (at.alpha**2 + at.sigma**2).sqrt() for x, at in zip(states, each, strict=True)]
    return Chain(torch.stack(seen), torch.stack(weights))


def total_variation(weights: Tensor) -> float:
    """Half of the summed differences from the true weights."""
    return 0.5 * (weights - target().weights).abs().sum().item()


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """Both chains at their end, and the weights of the modes through their steps."""
    chains = _chains(subject, options)
    predicted = total_variation(share_of_basins())
    ends = {name: total_variation(chain.weights[-1]) for name, chain in chains.items()}
    for name, distance in ends.items():
        print(f"{name} Langevin: mode weights off by {distance:.3f} (total variation)", flush=True)
    print(f"by theory: plain {predicted:.3f}, the share of its start in each basin; annealed 0")
    titles = {
        "plain": f"plain: weights off by {ends['plain']:.2f} (theory {predicted:.2f})",
        "annealed": f"annealed: weights off by {ends['annealed']:.2f} (theory 0)",
    }
    return _figure(chains, titles, len(chains["plain"].x))


def frames(subject: Subject, options: FigureOptions) -> list[Figure]:
    """Both chains through their steps."""
    chains = _chains(subject, options)
    length = len(chains["plain"].x)
    shares = (torch.linspace(0, 1, FRAMES).square() * (length - 1)).round().long() + 1
    chains = {name: Chain(chain.x[:, :POINTS_OF_FRAME], chain.weights) for name, chain in chains.items()}
    titles = {name: f"{name} Langevin" for name in chains}
    return [_figure(chains, titles, int(k)) for k in shares]


def _chains(subject: Subject, options: FigureOptions) -> dict[str, Chain]:
    count = NUM_SAMPLES if options.num_samples is None else options.num_samples
    steps = NUM_STEPS if options.num_steps is None else options.num_steps
    require(count >= 1, f"num_samples={count}: need at least 1")
    require(steps >= 2, f"num_steps={steps}: need at least 2")
    return {"plain": plain(count, steps, options.seed), "annealed": annealed(subject.sde, count, steps, options.seed)}


def _figure(chains: dict[str, Chain], titles: dict[str, str], length: int) -> Figure:
    """The chains after `length` states."""
    axis = torch.linspace(-2.2, 2.2, POINTS)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    log_density = target().log_prob(grid.reshape(-1, 2), torch.ones(()), torch.zeros(())).reshape(POINTS, POINTS)
    clouds = {titles[name]: chain.x[min(length, len(chain.x)) - 1] for name, chain in chains.items()}
    steps = {name: torch.linspace(0, 1, len(chain.x))[:length] for name, chain in chains.items()}
    weights = {name: chain.weights[:length] for name, chain in chains.items()}
    return plots.langevin(clouds, grid, log_density, steps, weights, target().weights)

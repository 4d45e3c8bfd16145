"""Points in the plane: distributions that a network learns in seconds and that one can judge by eye.

Each is 10,000 samples of about unit size, the same in every run. Half circles, Gaussians and rings are classes; blobs
are of three classes.
"""

from __future__ import annotations

import math

import torch

from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.targets import GaussianMixture

NUM_TOY_SAMPLES = 10_000


def moons() -> ArrayData:
    """Two interleaved half circles, one class each."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(NUM_TOY_SAMPLES, noise=0.05, random_state=0)
    return ArrayData(torch.from_numpy(points).float(), torch.from_numpy(labels), Scaling(center=0.4, scale=1.0))


def nine_modes() -> GaussianMixture:
    """Eight modes on the unit circle and one at the origin, standard deviation 0.05, weights as 1 : 2 : ... : 9."""
    angle = torch.arange(8) * (math.pi / 4)
    means = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(1, 2)])
    return GaussianMixture(torch.arange(1.0, 10.0), means, torch.full((9,), 0.05**2))


def modes() -> ArrayData:
    """Draws from `nine_modes`."""
    return ArrayData(nine_modes().sample(NUM_TOY_SAMPLES, torch.Generator().manual_seed(0)))


def labelled_mixture() -> tuple[GaussianMixture, torch.Tensor]:
    """Eight Gaussians about a circle that run into each other, float64, and their classes, 0, 1 or 2."""
    generator = torch.Generator().manual_seed(5)
    means = 1.2 * _on_circle(torch.arange(8, dtype=torch.float64) * (math.pi / 4))
    means = means + 0.25 * torch.randn(8, 2, generator=generator, dtype=torch.float64)
    rotations = torch.linalg.qr(torch.randn(8, 2, 2, generator=generator, dtype=torch.float64)).Q
    variances = torch.tensor([0.45, 0.2], dtype=torch.float64) ** 2
    weights = torch.tensor([1.0, 2, 1, 3, 1, 2, 2, 1], dtype=torch.float64)
    mixture = GaussianMixture(weights, means, rotations * variances @ rotations.mT)
    return mixture, torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])


def blobs() -> ArrayData:
    """Draws from `labelled_mixture`."""
    mixture, classes = labelled_mixture()
    generator = torch.Generator().manual_seed(0)
    labels = classes[torch.multinomial(mixture.weights, NUM_TOY_SAMPLES, replacement=True, generator=generator)]
    points = torch.empty(NUM_TOY_SAMPLES, 2)
    for label in range(3):
        own = labels == label
        points[own] = mixture.components(classes == label).sample(int(own.sum()), generator).float()
    return ArrayData(points, labels)


def swiss_roll() -> ArrayData:
    """A spiral of one and a half turns: the roll of scikit-learn from the side, a seventh of its size."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(NUM_TOY_SAMPLES, noise=0.35, random_state=0)
    return ArrayData(torch.from_numpy(points[:, [0, 2]] / 7).float())


def checkerboard() -> ArrayData:
    """Uniform on the eight dark squares, of side 1, of a board over [-2, 2] x [-2, 2]."""
    u = torch.rand(NUM_TOY_SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    x = 4 * u[:, 0] - 2
    y = 2 * u[:, 1]  # over the two dark squares of a column, which are two apart
    y = y % 1 + 2 * y.floor() - 2 + x.floor() % 2
    return ArrayData(torch.stack([x, y], 1))


def eight_gaussians() -> ArrayData:
    """Equal Gaussians of standard deviation 0.1 on a circle of radius sqrt 2, one class each."""
    labels = torch.arange(NUM_TOY_SAMPLES) % 8
    noise = torch.randn(NUM_TOY_SAMPLES, 2, generator=torch.Generator().manual_seed(0))
    return ArrayData(math.sqrt(2) * _on_circle(labels * (math.pi / 4)) + 0.1 * noise, labels)


def known_mixture(name: str) -> tuple[GaussianMixture, torch.Tensor] | None:
    """The mixture that a data set is drawn from, float64, and the classes of its components; None for the others."""
    if name == "modes":
        mixture = nine_modes().to(dtype=torch.float64)
        return mixture, torch.zeros(len(mixture.weights), dtype=torch.long)
    if name == "blobs":
        return labelled_mixture()
    if name == "eight_gaussians":
        means = math.sqrt(2) * _on_circle(torch.arange(8, dtype=torch.float64) * (math.pi / 4))
        variances = torch.full((8,), 0.1**2, dtype=torch.float64)
        return GaussianMixture(torch.ones(8, dtype=torch.float64), means, variances), torch.arange(8)
    return None


def rings() -> ArrayData:
    """Three circles of radius 0.5, 1 and 1.5 with noise of standard deviation 0.05, one class each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM_TOY_SAMPLES) % 3
    angle = 2 * math.pi * torch.rand(NUM_TOY_SAMPLES, generator=generator)
    noise = torch.randn(NUM_TOY_SAMPLES, 2, generator=generator)
    return ArrayData(0.5 * (1 + labels[:, None]) * _on_circle(angle) + 0.05 * noise, labels)


def _on_circle(angle: torch.Tensor) -> torch.Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1)


TOYS = {f.__name__: f for f in (moons, modes, swiss_roll, checkerboard, eight_gaussians, rings, blobs)}

"""How honest the intervals of distances are: how often they hold the value that infinitely many samples would have.

    python -m benchmarks.intervals [--repetitions 300]

Two mixtures of four Gaussians in 2 and in 16 dimensions, one with other weights and a shift, drawn again in each
repetition; of the Frechet and the kernel distance

    covered        share of the nominal 95 % intervals that hold the large-sample value
    bias           of the number itself
    extrapolated   bias of the number extrapolated to infinitely many samples, and its standard error

The large-sample value of the Frechet distance is that of the exact moments; the kernel distance's expectation is that
of the moments up to the third of four million samples.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde.metrics.compare import compare
from scoresde.metrics.features import FeatureSet
from scoresde.metrics.frechet import frechet_of_moments
from scoresde.metrics.moments import Moments

MODES = 4
LARGE = 4_000_000
CHUNK = 200_000


@final
class Mixture(NamedTuple):
    """Isotropic Gaussians of deviation `std`."""

    weights: Tensor
    means: Tensor
    std: float

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        mode = torch.multinomial(self.weights, count, True, generator=generator)
        dim = self.means.shape[1]
        return self.means[mode] + self.std * torch.randn(count, dim, generator=generator, dtype=torch.float64)

    def moments(self) -> Moments:
        mean = self.weights @ self.means
        centred = self.means - mean
        covariance = centred.mT @ (self.weights[:, None] * centred)
        covariance += self.std**2 * torch.eye(len(mean), dtype=torch.float64)
        return Moments.exact(mean, covariance)


def pair(dim: int) -> tuple[Mixture, Mixture]:
    """The two mixtures."""
    generator = torch.Generator().manual_seed(dim)
    means = torch.randn(MODES, dim, generator=generator, dtype=torch.float64) * 2
    even = torch.full((MODES,), 1 / MODES, dtype=torch.float64)
    uneven = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return Mixture(even, means, 0.7), Mixture(uneven, means + 0.2, 0.8)


def kernel_expectation(first: Mixture, second: Mixture) -> float:
    """The squared discrepancy of (x . y / F + 1)^3, from moments up to the third."""
    generator = torch.Generator().manual_seed(1)
    dim = first.means.shape[1]
    features = []
    for mixture in (first, second):
        total = torch.zeros(dim + dim**2 + dim**3, dtype=torch.float64)
        for _ in range(LARGE // CHUNK):
            x = mixture.draw(CHUNK, generator)
            square = torch.einsum("ni,nj->nij", x, x).flatten(1)
            cube = square.mT @ x / CHUNK
            total += torch.cat([x.mean(0), square.mean(0), cube.flatten()])
        mean, second_moment, third = (total / (LARGE // CHUNK)).split([dim, dim**2, dim**3])
        scaled = [(3 / dim) ** 0.5 * mean, 3**0.5 / dim * second_moment, dim**-1.5 * third]
        features.append(torch.cat(scaled))
    return (features[0] - features[1]).square().sum().item()


def measure(dim: int, count: int, repetitions: int) -> None:
    first, second = pair(dim)
    truth = {
        "fid": frechet_of_moments(first.moments(), second.moments()),
        "kid": kernel_expectation(first, second),
    }
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in truth}
    for repetition in range(repetitions):
        generator = torch.Generator().manual_seed(1000 + repetition)
        sets = [FeatureSet.of(each.draw(count, generator), "mixture") for each in (first, second)]
        for name, estimates in found.items():
            (one,) = compare(sets[0], sets[1], [name]).values()
            estimates.append(tuple(one))
    for name, estimates in found.items():
        plain, extrapolated, low, high = torch.tensor(estimates, dtype=torch.float64).unbind(1)
        covered = ((low <= truth[name]) & (truth[name] <= high)).double().mean().item()
        biases = [plain.mean().item() - truth[name], extrapolated.mean().item() - truth[name]]
        error = extrapolated.std().item() / repetitions**0.5
        print(
            f"{dim:5}{count:8}  {name:7}{truth[name]:10.4g}{covered:10.3f}{(high - low).mean().item():9.2g}"
            f"{biases[0]:10.2g}{biases[1]:14.2g} ({error:.1g})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    repetitions = parser.parse_args().repetitions
    print("  dim   count  metric      truth   covered    width      bias  extrapolated (error)")
    for dim, count in ((2, 500), (16, 500), (16, 2000)):
        measure(dim, count, repetitions)


if __name__ == "__main__":
    main()

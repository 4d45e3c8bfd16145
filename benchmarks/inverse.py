"""Posterior samples against exact posteriors: ours and the peers', on one denoiser, measurement and noise.

    python -m benchmarks.inverse                             everything, in minutes
    python -m benchmarks.inverse --parts gaussian,coverage   some of it

The denoisers are exact, so that all errors are those of the methods. Distances are sliced Wasserstein-2 to exact
samples, as multiples of that between two exact sets of the same size (the floor). Peers that cannot be imported are
left out; one that fails is named.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.inverse_peers import PEERS, Problem
from samplers import (
    DDIM,
    DDRM,
    Ancestral,
    RePaint,
    Replacement,
    Sampler,
    SDEDPMSolver,
    SplitGibbs,
    Trigonometric,
    pilot_variance,
    sample,
    sample_particles,
)
from scoresde import VPSDE, ExactScoreModel, GaussianMixture
from scoresde.inverse import DPS, MMPS, DiffPIR, MeasuredModel, PiGDM, PosteriorModel
from scoresde.metrics import sliced_wasserstein
from scoresde.metrics.calibration import interval_coverage, ranks, region_coverage
from scoresde.operators import BlockAverage, LinearOperator, Mask, MatrixOperator

NOISE = 0.1
FLOATS = {"dtype": torch.float64}
Ours = dict[str, tuple[Callable[..., PosteriorModel], Sampler | None]]

OURS: Ours = {
    "MMPS, Trigonometric": (MMPS, Trigonometric()),
    "MMPS, SDEDPMSolver": (MMPS, SDEDPMSolver()),
    "MMPS of 8 iterations, Trigonometric": (lambda *args: MMPS(*args, 8), Trigonometric()),
    "MMPS of 8 iterations, SDEDPMSolver": (lambda *args: MMPS(*args, 8), SDEDPMSolver()),
    "MMPS of 8 iterations, Ancestral": (lambda *args: MMPS(*args, 8), Ancestral()),
    "PiGDM, Ancestral": (PiGDM, Ancestral()),
    "DPS, Ancestral": (DPS, Ancestral()),
    "DiffPIR, DDIM(0.85)": (DiffPIR, DDIM(0.85)),
    "DDRM": (MeasuredModel, DDRM()),
    "SplitGibbs": (MeasuredModel, SplitGibbs()),
    "Replacement": (MeasuredModel, Replacement()),
    "RePaint (5 x 2)": (MeasuredModel, Replacement(RePaint(5, 2))),
    "particles, PiGDM": (PiGDM, None),
    "particles, MMPS solved exactly": (lambda *args: MMPS(*args, None), None),
}


def draw(prior: GaussianMixture, operator: LinearOperator, y: Tensor, name: str, count: int, steps: int) -> Tensor:
    """Samples `(count, *shape)` of one of our methods, with about as many evaluations as asked for."""
    build, sampler = OURS[name]
    model = build(ExactScoreModel(prior, VPSDE()), operator, NOISE)
    if sampler is None:
        variance = pilot_variance(model.model, intervals=1)
        return sample_particles(model, 1, count, num_steps=steps, cond=y[None], variance=variance).x[0]
    num_steps = max(2, steps // 5) if "RePaint" in name else steps
    each = y.expand(count, *y.shape)
    return sample(model, sampler, count, num_steps=num_steps, cond=each, batch_size=count).x


def gaussian_prior(seed: int = 0) -> GaussianMixture:
    """Eight entries with deviations from 1 to .05 along random axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=generator, **FLOATS)).Q
    variances = torch.logspace(0, 2 * math.log10(0.05), 8, **FLOATS)
    return GaussianMixture(torch.ones(1, **FLOATS), torch.zeros(1, 8, **FLOATS), ((axes * variances) @ axes.T)[None])


def modes_prior(seed: int) -> GaussianMixture:
    """Four components in eight dimensions, far apart."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(4, 8, generator=generator, **FLOATS)
    axes = torch.linalg.qr(torch.randn(4, 8, 8, generator=generator, **FLOATS)).Q
    std = 0.05 + 0.25 * torch.rand(4, 8, generator=generator, **FLOATS)
    return GaussianMixture(torch.ones(4, **FLOATS), means, (axes * std[:, None] ** 2) @ axes.mT)


def images_prior() -> GaussianMixture:
    """Handwritten digits, each class a Gaussian of 64 entries, from -1 to 1."""
    digits = load_digits()
    x = torch.tensor(digits.images, **FLOATS)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    flat = [x[labels == k].flatten(1) for k in range(10)]
    covariances = torch.stack([part.mT.cov() + 0.05**2 * torch.eye(64, **FLOATS) for part in flat])
    means = torch.stack([part.mean(0) for part in flat]).reshape(10, 1, 8, 8)
    return GaussianMixture(torch.ones(10, **FLOATS), means, covariances)


def measured(prior: GaussianMixture, operator: LinearOperator, seed: int) -> Tensor:
    """One measurement of a draw from the prior."""
    generator = torch.Generator().manual_seed(1000 + seed)
    clean = operator(prior.sample(1, generator))[0]
    return clean + NOISE * torch.randn(clean.shape, generator=generator, **FLOATS)


def table(
    title: str,
    problems: list[tuple[GaussianMixture, LinearOperator, Tensor]],
    budgets: list[int],
    count: int,
    names: list[str],
) -> None:
    """The distances of all methods, as multiples of the floor, means over problems."""
    exact = []
    floor = []
    for k, (prior, operator, y) in enumerate(problems):
        generator = torch.Generator().manual_seed(k)
        posterior = prior.posterior(operator, y, NOISE)
        one = posterior.sample(count, generator)
        others = [posterior.sample(count, generator) for _ in range(5)]
        exact.append(one)
        floor.append(sum(sliced_wasserstein(one, other) for other in others) / len(others))
    print(f"\n{title}: {count} samples, {len(problems)} measurements, floor {sum(floor) / len(floor):.4f}")
    print(f"{'evaluations':48}" + "".join(f"{budget:>9}" for budget in budgets), flush=True)
    for name, run in _runs(names):
        cells = []
        try:
            for budget in budgets:
                ratios = []
                for problem, truth, least in zip(problems, exact, floor, strict=True):
                    ratios.append(sliced_wasserstein(run(problem, count, budget), truth) / least)
                cells.append(f"{sum(ratios) / len(ratios):9.2f}")
        except ImportError:
            continue
        except Exception as error:
            cells.append(f"  {type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}")
        print(f"{name:48}" + "".join(cells), flush=True)


def _runs(names: list[str]) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Ours, then the peers', each as run(problem, count, budget)."""
    for name in names:
        yield name, lambda problem, count, budget, name=name: draw(*problem, name, count, budget)
    for name, peer in PEERS.items():

        def run(problem, count, budget, peer=peer):
            prior, operator, y = problem
            axes = torch.eye(math.prod(prior.shape), **FLOATS) if prior.rotations is None else prior.rotations
            covariances = axes.mT @ (prior.variances[..., None] * axes)
            flat = GaussianMixture(prior.weights, prior.means, covariances)
            matrix = operator.to(dtype=torch.float64).matrix()
            with torch.random.fork_rng():
                found = peer(Problem(flat, matrix, y.flatten(), NOISE), count, budget, 0)
            return found.reshape(-1, *prior.shape)

        yield name, run


def weights_of_modes(seeds: list[int], count: int, steps: int) -> None:
    """Errors of the weights of modes, of particles."""
    print(f"\nweights of modes, {count} particles x {steps} evaluations, mean over 8 seeds")
    for seed in seeds:
        prior = modes_prior(seed)
        operator = MatrixOperator(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed), **FLOATS))
        y = measured(prior, operator, seed)
        posterior = prior.posterior(operator, y, NOISE)
        one = torch.ones((), **FLOATS)
        found = []
        exact = ExactScoreModel(prior, VPSDE())
        variance = pilot_variance(exact, intervals=1)
        for k in range(8):
            model = PiGDM(exact, operator, NOISE)
            x = sample_particles(model, 1, count, num_steps=steps, cond=y[None], seed=k, variance=variance).x[0]
            nearest = posterior._joint(x, one, 1e-9 * one)[0].argmax(1)
            found.append(torch.bincount(nearest, minlength=len(posterior.weights)) / count)
        mean = torch.stack(found).mean(0)
        shown = ", ".join(f"{a:.3f} ({b:.3f})" for a, b in zip(mean.tolist(), posterior.weights.tolist(), strict=True))
        print(f"  found (exact): {shown}; largest error {(mean - posterior.weights).abs().max():.3f}", flush=True)


def coverage(cases: int) -> None:
    """How often nominal 90 % regions hold the truth."""
    print(f"\ncoverage of nominal 90 %, {cases} cases of 19 samples: intervals, regions")
    generator = torch.Generator().manual_seed(5)
    gaussian = gaussian_prior()
    projection = MatrixOperator(torch.randn(3, 8, generator=generator, **FLOATS))
    for name, steps in [(n, 50) for n in OURS if "8 iterations" not in n and "particles" not in n]:
        x = gaussian.sample(cases, generator)
        y = projection(x) + NOISE * torch.randn(cases, 3, generator=generator, **FLOATS)
        build, sampler = OURS[name]
        model = build(ExactScoreModel(gaussian, VPSDE()), projection, NOISE)
        assert sampler is not None
        each = y.repeat_interleave(19, 0)
        drawn = sample(model, sampler, len(each), num_steps=steps, cond=each, batch_size=len(each)).x
        found = ranks(x, drawn.unflatten(0, (cases, 19)))
        print(f"  Gaussian, {name:40}{interval_coverage(found)}   {region_coverage(found)}", flush=True)
    prior = modes_prior(1)
    operator = MatrixOperator(torch.randn(1, 8, generator=torch.Generator().manual_seed(1), **FLOATS))
    for name in ("particles, PiGDM", "particles, MMPS solved exactly", "MMPS, Trigonometric", "PiGDM, Ancestral"):
        x = prior.sample(cases, generator)
        y = operator(x) + NOISE * torch.randn(cases, 1, generator=generator, **FLOATS)
        build, sampler = OURS[name]
        model = build(ExactScoreModel(prior, VPSDE()), operator, NOISE)
        if sampler is None:
            count = 256
            variance = pilot_variance(model.model, intervals=1)
            found_x = sample_particles(model, cases, count, num_steps=50, cond=y, batch_size=2**15, variance=variance).x
            drawn = found_x[:, torch.arange(19) * count // 19]
        else:
            each = y.repeat_interleave(19, 0)
            drawn = sample(model, sampler, len(each), num_steps=50, cond=each, batch_size=len(each)).x
            drawn = drawn.unflatten(0, (cases, 19))
        found = ranks(x, drawn)
        print(f"  four modes, {name:38}{interval_coverage(found)}   {region_coverage(found)}", flush=True)


def main() -> None:
    """Prints the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="gaussian,modes,images,coverage")
    parser.add_argument("--cases", type=int, default=1000)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    torch.set_num_threads(1)
    start = time.monotonic()
    few = [name for name in OURS if "8 iterations" not in name]
    if "gaussian" in parts:
        prior = gaussian_prior()
        problems = []
        for seed in range(2):
            operator = MatrixOperator(torch.randn(3, 8, generator=torch.Generator().manual_seed(seed), **FLOATS))
            problems.append((prior, operator, measured(prior, operator, seed)))
        table("Gaussian prior, d = 8, 3 measured", problems, [10, 20, 100], 2000, few)
    if "modes" in parts:
        problems = []
        for seed in (1, 2, 3):
            prior = modes_prior(seed)
            operator = MatrixOperator(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed), **FLOATS))
            problems.append((prior, operator, measured(prior, operator, seed)))
        table("four modes, d = 8, 1 measured", problems, [50], 256, few)
        weights_of_modes([1, 2, 3], 256, 50)
    if "images" in parts:
        prior = images_prior()
        tasks = {"half of the pixels": Mask.box((1, 8, 8), (0, 0), (4, 8)), "4 x": BlockAverage((1, 8, 8), 4)}
        for task, operator in tasks.items():
            problems = [(prior, operator, measured(prior, operator, seed)) for seed in range(6)]
            table(f"images of 64 entries, {task}", problems, [20, 50], 500, list(OURS))
    if "coverage" in parts:
        coverage(arguments.cases)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()

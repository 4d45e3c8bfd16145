"""Samplers with noise at few evaluations: sliced Wasserstein distance to true samples of the exact mixtures.

SW2 is taken over 200 directions between 20,000 samples and 20,000 true ones, and given as a multiple of its mean
between independent sets of true samples. `SDEDPMSolver()` and `Ancestral()` run with their defaults. Of diffusers' and
k-diffusion's SDE-DPM-Solver++(2M) the best one over the nodes of `benchmarks.samplers_nfe` is given. Peers that cannot
be imported are left out:

    python -m benchmarks.stochastic_nfe [--problems mix2d,mix64] [--counts 10,20,35,50]
"""

from __future__ import annotations

import argparse
import contextlib
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.samplers_nfe import REFUSED, Problem, Runs, node_families, problem
from samplers import Ancestral, SDEDPMSolver, sample
from scoresde import ExactScoreModel

NUM_SAMPLES = 20_000
DIRECTIONS = 200
SETS = 5  # of true samples, beside the one that all are compared with


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """SW2 of two sets of equally many points `(N, d)`."""
    directions = torch.randn(a.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    along = [torch.sort(x @ (directions / directions.norm(dim=0)), 0).values for x in (a, b)]
    return (along[0] - along[1]).square().mean().sqrt().item()


def of_diffusers(p: Problem, n: int) -> Runs:
    """SDE-DPM-Solver++(2M) of diffusers on all nodes."""
    import diffusers

    def run(levels: Tensor) -> Tensor:
        scheduler = diffusers.DPMSolverMultistepScheduler(
            prediction_type="sample", algorithm_type="sde-dpmsolver++", solver_order=2
        )
        scheduler.set_timesteps(n)
        scheduler.sigmas = torch.cat([levels, levels.new_zeros(1)])
        scheduler.timesteps = torch.arange(n, 0, -1)
        scheduler.num_inference_steps = n
        scale = torch.sqrt(1 + levels**2).tolist()
        r = levels.tolist()
        x = p.start / scale[0]
        generator = torch.Generator().manual_seed(7)
        for k, step in enumerate(scheduler.timesteps):
            x = scheduler.step(p.denoise(x * scale[k], r[k]), step, x, generator=generator).prev_sample
        return x.to(p.start.dtype)

    for nodes, levels in node_families(*p.ends, n):
        yield f"diffusers {nodes}", partial(run, levels)


def of_k_diffusion(p: Problem, n: int) -> Runs:
    """SDE-DPM-Solver++(2M) of k-diffusion on all nodes."""
    from k_diffusion import sampling

    def run(levels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return sampling.sample_dpmpp_2m_sde(
            lambda u, sigma, **_: p.denoise(u, sigma[0].item()),
            p.start,
            torch.cat([levels, levels.new_zeros(1)]),
            disable=True,
            noise_sampler=lambda *_: torch.randn(p.start.shape, generator=generator, dtype=p.start.dtype),
        )

    for nodes, levels in node_families(*p.ends, n):
        yield f"k-diffusion {nodes}", partial(run, levels)


def best_peer(p: Problem, n: int, truth: Tensor) -> tuple[float, str]:
    """The smallest distance of all peers' configurations, and which one has it, of how many."""
    found = []
    for peers in (of_diffusers, of_k_diffusion):
        with contextlib.suppress(ImportError):
            for label, run in peers(p, n):
                with contextlib.suppress(*REFUSED):
                    distance = sliced_wasserstein(run(), truth)
                    if math.isfinite(distance):
                        found.append((distance, label))
    best, label = min(found, default=(math.nan, "none installed"))
    return best, f"{label} ({len(found)})"


def compare(name: str, counts: list[int]) -> None:
    """Prints the distances on a problem, a line for each number of evaluations."""
    p = problem(name, Path(), "")
    assert isinstance(p.model, ExactScoreModel)
    first, *others = (p.model.target.sample(NUM_SAMPLES, torch.Generator().manual_seed(k)) for k in range(1, SETS + 2))
    floor = sum(sliced_wasserstein(first, other) for other in others) / SETS
    noise = torch.randn(NUM_SAMPLES, *p.model.shape, generator=torch.Generator().manual_seed(9)).double()
    p = p._replace(start=p.ends[0] * noise)
    print(f"{name}: floor {floor:.4f}; evaluations, multiples of it: sde_dpm_solver, ancestral, best peer")
    for n in counts:
        distances = []
        for sampler in (SDEDPMSolver(), Ancestral()):
            x = sample(p.model, sampler, NUM_SAMPLES, num_steps=n, batch_size=NUM_SAMPLES).x
            distances.append(sliced_wasserstein(x, first))
        peer, label = best_peer(p, n, first)
        numbers = "".join(f"{distance / floor:>8.2f}" for distance in (*distances, peer))
        print(f"{n:>6}{numbers}  {label}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="mix2d,mix64")
    parser.add_argument("--counts", default="10,20,35,50", help="numbers of evaluations")
    options = parser.parse_args()
    for name in options.problems.split(","):
        compare(name, [int(n) for n in options.counts.split(",")])


if __name__ == "__main__":
    main()

"""Stochastic samplers at few evaluations: sliced Wasserstein distance to true samples of the exact mixtures.

SW2 is taken over 200 directions between 20,000 samples and 20,000 true ones, and given as a multiple of its mean
between independent sets of true samples. `SDEDPMSolver()` and `Ancestral()` are run as they are by default; of
diffusers' and k-diffusion's SDE-DPM-Solver++(2M) the best of the nodes of `benchmarks.samplers_nfe` is given.

    python -m benchmarks.stochastic_nfe [--counts 10,20,35,50]
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.samplers_nfe import Problem, node_families, problem
from samplers import Ancestral, SDEDPMSolver, sample
from scoresde import ExactScoreModel

NUM_SAMPLES, DIRECTIONS = 20_000, 200


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """SW2 of two sets of as many points `(N, d)`."""
    directions = torch.randn(a.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    along = [torch.sort(x @ (directions / directions.norm(dim=0)), 0).values for x in (a, b)]
    return (along[0] - along[1]).square().mean().sqrt().item()


def of_peers(p: Problem, n: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    with contextlib.suppress(ImportError):
        import diffusers

        def run_diffusers(levels: Tensor) -> Tensor:
            scheduler = diffusers.DPMSolverMultistepScheduler(
                prediction_type="sample", algorithm_type="sde-dpmsolver++", solver_order=2
            )
            scheduler.set_timesteps(n)
            scheduler.sigmas = torch.cat([levels, levels.new_zeros(1)])
            scheduler.timesteps, scheduler.num_inference_steps = torch.arange(n, 0, -1), n
            scale, r = torch.sqrt(1 + levels**2).tolist(), levels.tolist()
            x = p.start / scale[0]
            generator = torch.Generator().manual_seed(7)
            for k, step in enumerate(scheduler.timesteps):
                x = scheduler.step(p.denoise(x * scale[k], r[k]), step, x, generator=generator).prev_sample
            return x.to(p.start.dtype)

        for nodes, levels in node_families(*p.ends, n):
            yield f"diffusers {nodes}", lambda levels=levels: run_diffusers(levels)  # type: ignore[misc]
    with contextlib.suppress(ImportError):
        from k_diffusion import sampling

        def run_k(levels: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(7)
            return sampling.sample_dpmpp_2m_sde(
                lambda u, sigma, **_: p.denoise(u, sigma[0].item()),
                p.start,
                torch.cat([levels, levels.new_zeros(1)]),
                disable=True,
                noise_sampler=lambda *_: torch.randn(p.start.shape, generator=generator, dtype=p.start.dtype),
            )

        for nodes, levels in node_families(*p.ends, n):
            yield f"k-diffusion {nodes}", lambda levels=levels: run_k(levels)  # type: ignore[misc]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="10,20,35,50")
    options = parser.parse_args()
    for name in ("mix2d", "mix64"):
        p = problem(name, Path(), "")
        assert isinstance(p.model, ExactScoreModel)
        truths = [p.model.target.sample(NUM_SAMPLES, torch.Generator().manual_seed(k)) for k in range(1, 7)]
        floor = sum(sliced_wasserstein(truths[0], other) for other in truths[1:]) / 5
        first = p.ends[0]
        start = first * torch.randn(NUM_SAMPLES, *p.model.shape, generator=torch.Generator().manual_seed(9)).double()
        p = p._replace(start=start)
        print(f"{name}: floor {floor:.4f}; evaluations, multiples of it: sde_dpm_solver, ancestral, best peer")
        for n in map(int, options.counts.split(",")):
            ours = [
                sliced_wasserstein(sample(p.model, s, NUM_SAMPLES, num_steps=n, batch_size=NUM_SAMPLES).x, truths[0])
                for s in (SDEDPMSolver(), Ancestral())
            ]
            peers = []
            for label, run in of_peers(p, n):
                with contextlib.suppress(RuntimeError, IndexError, ValueError, ZeroDivisionError):
                    distance = sliced_wasserstein(run(), truths[0])
                    if math.isfinite(distance):
                        peers.append((distance, label))
            best, label = min(peers, default=(math.nan, "none installed"))
            print(f"{n:>6}" + "".join(f"{x / floor:>8.2f}" for x in (*ours, best)) + f"  {label} ({len(peers)})")


if __name__ == "__main__":
    main()

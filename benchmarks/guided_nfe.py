"""The error of guided samplers at few steps, beside that of diffusers and azula on the same guided model.

As in `benchmarks.samplers_nfe`, whose peers, error and trained networks these are: the distance to the end of the
converged guided flow from the same noise, here in deviations of what that flow draws. A step takes two evaluations of
the network. Two comparisons are made at every number of steps:

    1. `DDIM()` on its default grid and on `power_phi` of power 1.5 and twice the data's deviation, with diffusers'
       DDIMScheduler and the best of its spacings;
    2. tables fitted to the guided model (`fit_sampler`) and, for up to 10 steps, calibrated ones (`calibrate`), with
       the best of all peers.

Problems: the mixture in the plane of `benchmarks.guidance`, the mixture of digits in 64 dimensions, a class for each
digit, and a network of digits that has learned without labels too. Peers that cannot be imported are left out:

    python -m benchmarks.guided_nfe [--problems plane,mix64,digits_guided] [--weights 2,4] [--counts 10,25]
        [--samples 200] [--noises 640] [--folder runs/nfe]
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.samplers_nfe import (
    MOST_CALIBRATED,
    PEERS,
    Problem,
    Runs,
    best_peer,
    fitted,
    joined,
    labels,
    mixture_of_digits,
    trained,
    trimmed,
)
from samplers import DDIM, calibrate, power_phi, reference_coupling
from scoresde import VPSDE, ClassifierFreeGuidance, ExactLabelledModel, Noise, ScoreModel
from scoresde.data import labelled_mixture


def labelled(name: str, folder: Path) -> tuple[ScoreModel, int]:
    """A model with labels that may be left out, and its number of classes."""
    if name == "plane":
        plane = ExactLabelledModel(*labelled_mixture(), VPSDE())
        return plane, plane.num_classes
    if name == "mix64":
        return ExactLabelledModel(mixture_of_digits(), torch.arange(10), VPSDE()), 10
    return trained(name, folder, "")


def ddim_of_diffusers(p: Problem, n: int) -> Runs:
    """diffusers' DDIMScheduler along DDPM's chain, with each of its spacings."""
    import diffusers

    def run(spacing: str, offset: int) -> Tensor:
        scheduler = diffusers.DDIMScheduler(
            prediction_type="sample", timestep_spacing=spacing, steps_offset=offset, clip_sample=False
        )
        scheduler.set_timesteps(n)
        x = p.start / p.ends[0]
        for t in scheduler.timesteps:
            alpha_bar = scheduler.alphas_cumprod[t].item()
            x0_hat = p.denoise(x / math.sqrt(alpha_bar), math.sqrt(1 / alpha_bar - 1))
            x = scheduler.step(x0_hat, t, x).prev_sample.to(p.start.dtype)
        return x

    for spacing, offset in (("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)):
        yield f"diffusers DDIM {spacing} {offset}", partial(run, spacing, offset)


def ddim_error(p: Problem, grid: Tensor) -> float:
    """The error of DDIM along a grid."""
    x_T = p.start / p.ends[0] * p.model.sde.sigma(grid[0]).item()
    x = DDIM().run(p.model, x_T, grid, Noise(0, torch.arange(len(x_T))), p.cond)
    return trimmed(x - p.end)


@torch.no_grad()
def compare(name: str, p: Problem, counts: list[int], noises: int, kept: Path) -> None:
    """Prints the errors on a problem, two lines for each number of steps."""
    deviation = p.end.std().item()
    of_pilot = fitted(name, p)
    sigma_data = of_pilot.tables[10].sigma_data
    truth = reference_coupling(p.model, sigma_data, labels(noises, p.classes), noises, seed=50)
    for n in counts:
        with p.model.eval_mode():
            default = ddim_error(p, DDIM().grid(p.model, n))
            by_phi = ddim_error(p, power_phi(p.model.sde, n, 1.5, 2 * p.model.sigma_data))
            of_peer = best_peer(p, n, kept / f"ddim_{len(p.start)}_{n}.json", (ddim_of_diffusers,))
            best = best_peer(p, n, kept / f"peers_{len(p.start)}_{n}.json", PEERS)
        own = p.error(of_pilot, n)
        calibrated = math.nan
        if n <= MOST_CALIBRATED:
            calibrated = p.error(calibrate(p.model, of_pilot, n, truth).sampler, n)
        for kinds, errors, (peer, label, tried) in (
            ("DDIM, its grid / power_phi", (default, by_phi), of_peer),
            ("fitted / calibrated", (own, calibrated), best),
        ):
            numbers = "".join(f"{error / deviation:>9.2g}" for error in (*errors, peer))
            ratios = "".join(f"{error / peer:>7.2f}" for error in errors)
            print(
                f"{n:>5}{2 * n:>5}  {kinds:<28}{numbers}{ratios}  {label} ({tried})".replace("nan", "  -"), flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="plane,mix64,digits_guided")
    parser.add_argument("--weights", default="2,4", help="of guidance")
    parser.add_argument("--counts", default="10,25", help="numbers of steps")
    parser.add_argument("--samples", type=int, default=200, help="that judge")
    parser.add_argument("--noises", type=int, default=640, help="that tables are calibrated on")
    parser.add_argument("--folder", type=Path, default=Path("runs/nfe"), help="of networks and the peers' errors")
    options = parser.parse_args()
    counts = [int(n) for n in options.counts.split(",")]
    for name in options.problems.split(","):
        model, classes = labelled(name, options.folder)
        for w in options.weights.split(","):
            called = f"{name}, w = {w}"
            p = joined(called, ClassifierFreeGuidance(model, float(w)), classes, options.samples)
            print(f"{'steps':>5}{'nfe':>5}{'':30}{'errors':>18}{'peer':>9}{'ratios':>14}  best peer of how many")
            compare(called, p, counts, options.noises, options.folder / f"{name}_w{w}")


if __name__ == "__main__":
    main()

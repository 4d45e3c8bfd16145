"""What classifier-free guidance costs: the time of guided sampling, divided by that of the same run without guidance.

Two conditional U-Nets with random weights: that of the digits, and one of 32 channels for 3x32x32. "guided" has a
weight of 2 at every level, and needs twice the evaluations. "outside" has an interval between two levels of the grid,
which guides nowhere. The three runs are timed in turn, on one thread, with loops made ready beforehand. A line gives
the medians of the ratios and, in brackets, their quartiles:

    python -m benchmarks.guidance_cost [--batch_sizes 1,16,64] [--seconds 30] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samplers import DDIM, Heun, TableSampler, prepare
from scoresde import VPSDE, ClassifierFreeGuidance, EDMParametrization, NetworkScoreModel, Noise, UNet

NUM_CLASSES = 10
NUM_STEPS = 5
FEWEST = 7  # repeats of a line, however long they take
NETWORKS = {
    "digits": ((1, 8, 8), {"channels": 16, "multipliers": (1, 2), "num_blocks": 1}),
    "3x32x32": ((3, 32, 32), {"channels": 32, "multipliers": (1, 2, 2), "num_blocks": 1}),
}
Run = Callable[[], Tensor]


def model_of(name: str, device: str) -> NetworkScoreModel:
    """A U-Net that knows a label for none."""
    shape, options = NETWORKS[name]
    network = UNet(shape[0], num_classes=NUM_CLASSES, label_dropout=0.1, **options)  # type: ignore[arg-type]
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(sigma_data=0.5), shape).to(device)


def runs_of(model: NetworkScoreModel, sampler: TableSampler, batch_size: int) -> list[Run]:
    """The run without guidance, the guided one, and the one outside its interval."""
    grid = sampler.grid(model, NUM_STEPS)
    first, second = sampler.evaluated(model, grid).noise_level[:2].tolist()
    between = (second + (first - second) / 3, first - (first - second) / 3)
    noise = Noise(0, torch.arange(batch_size, device=model.device))
    cond = torch.arange(batch_size, device=model.device) % NUM_CLASSES
    x_T = noise.normal(0, model.shape, model.dtype)

    def run(sampled: NetworkScoreModel | ClassifierFreeGuidance) -> Run:
        prepared = prepare(sampled, sampler, grid)
        return lambda: prepared(x_T, noise, cond).x

    return [run(model), run(ClassifierFreeGuidance(model, 2.0)), run(ClassifierFreeGuidance(model, 2.0, between))]


def seconds_of(run: Run, device: str) -> float:
    """The time of one run: on a CPU of this process, so that others matter less; on a GPU until all is done."""
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def ratios(runs: Sequence[Run], device: str, seconds: float) -> list[list[float]]:
    """For each run after the first, its times divided by those of the first; each begins a third of the rounds."""
    for run in runs:
        seconds_of(run, device)
    found: list[list[float]] = [[] for _ in runs[1:]]
    end = time.perf_counter() + seconds
    while len(found[0]) < FEWEST or time.perf_counter() < end:
        turn = len(found[0]) % len(runs)
        order = [*range(turn, len(runs)), *range(turn)]
        taken = {k: seconds_of(runs[k], device) for k in order}
        for k, column in enumerate(found, 1):
            column.append(taken[k] / taken[0])
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=30, help="of a line")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':>8}{'batch':>7}  {'sampler':<8}{'rounds':>7}{'guided':>22}{'outside':>22}")
    for name in NETWORKS:
        model = model_of(name, options.device)
        for batch_size in map(int, options.batch_sizes.split(",")):
            for sampler in (DDIM(), Heun()):
                found = ratios(runs_of(model, sampler, batch_size), options.device, options.seconds)
                columns = ""
                for column in found:
                    low, middle, high = statistics.quantiles(column, n=4)
                    columns += f"{middle:>8.3f} ({low:.3f}, {high:.3f})"
                kind = type(sampler).__name__
                print(f"{name:>8}{batch_size:>7}  {kind:<8}{len(found[0]):>7}{columns}", flush=True)


if __name__ == "__main__":
    main()

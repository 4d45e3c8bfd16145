"""What a sampling loop costs beside the network: this library, hand-written loops, and peers where they are installed.

The network is trivial (a tenth of its input), predicts noise under VP, and takes 3x32x32. Each line is the time of a
whole run, network included, divided by that of a loop written by hand with numbers known beforehand and in-place
operations, in the same process and in turn, on one thread; loops are made ready beforehand, as `sample` does once for
all batches. By hand, noise is drawn for the whole batch, or with a generator that is seeded for each sample and step;
here it is a function of (seed, sample, step), on every device the same:

    python -m benchmarks.overhead [--batch_sizes 1,16] [--num_steps 50]

diffusers (0.30 or later) and azula are compared if they can be imported.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from samplers import DDIM, Ancestral, DPMSolver, TableSampler, prepare, uniform_log_snr
from scoresde import VPSDE, NetworkScoreModel, Noise, NoiseParametrization

SHAPE = (3, 32, 32)


class Tenth(nn.Module):
    """The trivial network."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return x * 0.1


def model_of(network: nn.Module) -> NetworkScoreModel:
    """A network that predicts noise under VP."""
    return NetworkScoreModel(network, VPSDE(), NoiseParametrization(), SHAPE)


def by_hand(sampler: TableSampler, grid: Tensor, x_T: Tensor, keyed: bool = False) -> Callable[[], Tensor]:
    """The loop of a one-value or two-value method, with everything but the network's call and the update left out."""
    network = Tenth()
    rule = NoiseParametrization()
    table = sampler.table(model_of(network), grid)
    on_y = table.p * rule.c_skip(table.level) + table.q
    on_raw = table.p * rule.c_out(table.level)
    a = (table.a + table.b[:, 0] * on_y).tolist()
    b = (table.b[:, 0] * on_raw).tolist()
    c = table.c.tolist()
    second = table.b[:, 1].tolist() if table.b.shape[1] > 1 else None
    h_y = on_y.tolist()
    h_raw = on_raw.tolist()
    times = table.level.t.float().unbind()
    noise = torch.empty_like(x_T)
    last = torch.empty_like(x_T)
    generator = torch.Generator()

    def draw(k: int) -> Tensor:
        for i in range(len(noise)) if keyed else ():
            noise[i].normal_(generator=generator.manual_seed(1_000_003 * i + k))
        return noise if keyed else noise.normal_()

    def plain() -> Tensor:
        y = x_T.clone()
        for k in range(len(a)):
            eps = network(y, times[k])
            y.mul_(a[k]).add_(eps, alpha=b[k])
            if c[k]:
                y.add_(draw(k), alpha=c[k])
        return y

    def two_values() -> Tensor:
        assert second is not None
        y = x_T.clone()
        for k in range(len(a)):
            eps = network(y, times[k])
            h = torch.mul(y, h_y[k]).add_(eps, alpha=h_raw[k])
            y.mul_(a[k]).add_(eps, alpha=b[k])
            if k and second[k]:
                y.add_(last, alpha=second[k])
            last.copy_(h)
        return y

    return plain if second is None else two_values


def ours(sampler: TableSampler, grid: Tensor, x_T: Tensor) -> Callable[[], Tensor]:
    """The library's loop; it is made ready in the first call, which is not timed."""
    prepared = prepare(model_of(Tenth()), sampler, grid)
    noise = Noise(0, torch.arange(len(x_T)))
    return lambda: prepared(x_T, noise).x


def diffusers_loop(name: str, num_steps: int, x_T: Tensor) -> Callable[[], Tensor]:
    import diffusers

    scheduler = getattr(diffusers, name)()
    network = Tenth()

    def run() -> Tensor:
        scheduler.set_timesteps(num_steps)
        y = x_T
        for t in scheduler.timesteps:
            y = scheduler.step(network(scheduler.scale_model_input(y, t), t), t, y).prev_sample
        return y

    return run


def azula_loop(name: str, num_steps: int, x_T: Tensor) -> Callable[[], Tensor]:
    import azula.denoise
    import azula.noise
    import azula.sample

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = azula.noise.VPSchedule()
            self.network = Tenth()

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> object:
            alpha, sigma = self.schedule(t)
            return azula.denoise.DiracPosterior((x_t - sigma * self.network(x_t, t)) / alpha)

    sampler = getattr(azula.sample, name)(Denoiser(), steps=num_steps, silent=True)
    return lambda: sampler(x_T)


KINDS = {"DDIM": DDIM(), "DPM-Solver++(2M)": DPMSolver(2), "ancestral": Ancestral()}
PEERS = {
    "DDIM": [(diffusers_loop, "DDIMScheduler"), (azula_loop, "DDIMSampler")],
    "DPM-Solver++(2M)": [(diffusers_loop, "DPMSolverMultistepScheduler")],
    "ancestral": [(diffusers_loop, "DDPMScheduler"), (azula_loop, "DDPMSampler")],
}


def loops_of(kind: str, grid: Tensor, x_T: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The loops of a kind of solver, that by hand first."""
    sampler = KINDS[kind]
    loops = {"by hand": by_hand(sampler, grid, x_T), "scoresde": ours(sampler, grid, x_T)}
    if sampler.noise != "none":
        loops["by hand, a seed for each sample"] = by_hand(sampler, grid, x_T, keyed=True)
    for make, name in PEERS[kind]:
        with contextlib.suppress(ImportError, RuntimeError):
            loops[f"{make.__name__.removesuffix('_loop')} {name}"] = make(name, len(grid) - 1, x_T)
    return loops


@torch.no_grad()
def medians(loops: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Seconds of each loop, run in turn; the first two runs of each are not timed."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats + 2):
        for name, loop in loops.items():
            began = time.perf_counter()
            loop()
            if repeat > 1:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="1,16")
    parser.add_argument("--num_steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = uniform_log_snr(VPSDE(), options.num_steps)
    print(f"{'batch':>5}  {'solver':<18}{'loop':<40}{'us a step':>10}{'ratio':>8}")
    for batch_size in map(int, options.batch_sizes.split(",")):
        x_T = torch.randn(batch_size, *SHAPE)
        for kind in KINDS:
            seconds = medians(loops_of(kind, grid, x_T), options.repeats)
            for name, median in seconds.items():
                step = 1e6 * median / options.num_steps
                ratio = median / seconds["by hand"]
                print(f"{batch_size:>5}  {kind:<18}{name:<40}{step:>10.1f}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()

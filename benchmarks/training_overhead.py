"""What a step of training costs over a bare loop of the same network, as one writes it by hand.

The bare loop draws indices, times and noise by torch's generator, computes the loss of the noise under VP and its
gradient, clips it, and takes a step of fused AdamW and of an average by one fused operation. It checks nothing and
logs nothing; the trainer's metrics are taken every 50 steps, as a run does. Steps of both alternate, and the figure is
the median of the ratios of neighbours:

    python -m benchmarks.training_overhead [--pairs 200] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde import MLP, VPSDE, NetworkScoreModel, NoiseParametrization, UNet
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer, TrainingOptions

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP of 128 features, batch 512": (lambda: MLP(2), (2,), 512),
    "the default U-Net, 1x8x8, batch 64": (lambda: UNet(1), (1, 8, 8), 64),
    "U-Net of 2.3 M, 3x32x32, batch 16": (lambda: UNet(3, 32, (1, 2, 2), 2), (3, 32, 32), 16),
    "U-Net of 9 M, 3x32x32, batch 8": (lambda: UNet(3, 60, (1, 2, 3), 2), (3, 32, 32), 8),
}
EVERY = 50  # steps a line of metrics


def bare_loop(network: nn.Module, data: Tensor, options: TrainingOptions) -> Callable[[], None]:
    """A step of a loop that is written by hand."""
    sde = VPSDE()
    parameters = list(network.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0, fused=True)
    size = options.batch_size

    def step() -> None:
        x_0 = data[torch.randint(len(data), (size,), device=data.device)]
        t = sde.t_min + (sde.t_max - sde.t_min) * torch.rand(size, device=data.device)
        column = t.view(-1, *[1] * (x_0.ndim - 1))
        alpha, sigma = sde.alpha(column), sde.sigma(column)
        eps = torch.randn_like(x_0)
        c_in = torch.rsqrt(alpha**2 + sigma**2)
        loss = (
            (network(c_in * (alpha * x_0 + sigma * eps), 0.25 * torch.log(sigma / alpha).flatten()) - eps)
            .square()
            .mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.grad_clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - options.ema_decay)

    return step


def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    torch.set_num_threads(1)
    print(f"{'':40} {'ms a step, bare':>16} {'overhead':>9}   {device}")
    for name, (make, shape, batch_size) in CASES.items():
        data = torch.randn(4096, *shape, device=device)
        options = TrainingOptions(batch_size=batch_size)
        torch.manual_seed(0)
        model = NetworkScoreModel(make(), VPSDE(), NoiseParametrization(), shape).to(device)
        trainer = Trainer(model, ArrayData(data), DenoisingObjective(), options)
        bare = bare_loop(make().to(device).train(), data, options)
        pairs = max(10, asked.pairs // (1 if len(shape) == 1 or shape[1] < 32 else 5))
        ours, theirs = timed(trainer, bare, pairs, device)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"{name:40} {1e3 * statistics.median(theirs):16.2f} {ratio - 1:9.1%}", flush=True)


def timed(
    trainer: Trainer, bare: Callable[[], None], pairs: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Seconds of steps of both, in turn; which is first alternates."""
    ours: list[float] = []
    theirs: list[float] = []

    def step() -> None:
        trainer.step()
        if trainer.step_number % EVERY == 0:
            trainer.pop_metrics()

    both = [(ours, step), (theirs, bare)]
    for k in range(pairs + 5):
        for times, action in both if k % 2 else reversed(both):
            start = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if k >= 5:
                times.append(time.perf_counter() - start)
    return ours, theirs


if __name__ == "__main__":
    main()

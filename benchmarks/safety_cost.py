"""What safety costs a training step: skipped non-finite steps, counted and logged, signals held back, checkpoints.

A U-Net of 9 million parameters takes steps of the trainer, and in turn the same steps without anything but
optimisation: loss, gradient, clipping, AdamW, average. The time of a checkpoint (checksum, fsync and rename included)
is shared by the steps between two of them, 500 by default. Pairs of steps, so that a busy machine disturbs both alike:

    python -m benchmarks.safety_cost [--pairs 30] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scoresde import VPSDE, NetworkScoreModel, NoiseParametrization, UNet, checkpoint
from scoresde.app.interrupt import Interruption
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer, TrainingOptions
from sde_configs import default


def bare_step(trainer: Trainer) -> None:
    """A step of a loop that trusts everything."""
    n = trainer.step_number
    options = trainer.options
    for group in trainer.optimizer.param_groups:
        group["lr"] = options.lr_at(n)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer._backward(n)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), options.grad_clip)
    trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
    trainer.optimizer.step()
    trainer.average.update(min(options.ema_decay, (1 + n) / (10 + n)))
    trainer.step_number = n + 1


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The time that an action takes."""
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def make_trainer(batch_size: int, device: torch.device) -> Trainer:
    """A trainer of random images."""
    network = UNet(3, channels=60, multipliers=(1, 2, 3), num_blocks=2)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3, 32, 32)).to(device)
    data = ArrayData(torch.randn(64, 3, 32, 32))
    return Trainer(model, data, DenoisingObjective(), TrainingOptions(batch_size=batch_size))


def time_steps(trainer: Trainer, pairs: int, every: int) -> tuple[list[float], list[float]]:
    """Seconds of safe and of bare steps, taken in turn; metrics are taken from the device every so many steps."""
    safe: list[float] = []
    bare: list[float] = []

    def safe_step() -> None:
        trainer.step()
        if trainer.step_number % every == 0:
            trainer.pop_metrics()
        assert interruption.signal is None

    both = [(safe, safe_step), (bare, lambda: bare_step(trainer))]
    with Interruption() as interruption:
        for warm in (*[True] * 3, *[False] * pairs):
            for times, action in both if len(safe) % 2 else reversed(both):
                taken = seconds(action, trainer.device)
                if not warm:
                    times.append(taken)
    return safe, bare


def time_saves(trainer: Trainer) -> list[float]:
    """Seconds of three checkpoints."""
    description = {"models": {checkpoint.SCORE: checkpoint.describe_model(trainer.model)}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.safetensors"

        def save() -> None:
            checkpoint.save(path, 1, description, trainer.state())

        return [seconds(save, trainer.device) for _ in range(3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    trainer = make_trainer(options.batch_size, options.device)
    config = default.get_config().logging
    safe, bare = time_steps(trainer, options.pairs, config.every)
    ratio = statistics.median(s / b for s, b in zip(safe, bare, strict=True))
    step = statistics.median(bare)
    save = statistics.median(time_saves(trainer))
    saving = save / (config.checkpoint_every * step)
    size = sum(p.numel() for p in trainer.model.parameters())
    print(f"{size:,} parameters, batch {options.batch_size}, {options.device}: a bare step {1e3 * step:.1f} ms")
    print(f"steps: {100 * (ratio - 1):+.2f} % (median of {options.pairs} pairs)")
    print(f"checkpoints: {100 * saving:+.2f} % ({save:.2f} s every {config.checkpoint_every} steps)")
    print(f"all safety: {100 * (ratio - 1 + saving):+.2f} %")


if __name__ == "__main__":
    main()

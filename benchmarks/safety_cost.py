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
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.settings.lr_at(n)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer._backward(n)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.settings.grad_clip)
    trainer.optimizer.found_inf = None  # type: ignore[attr-defined]
    trainer.optimizer.step()
    decay = min(trainer.settings.ema_decay, (1 + n) / (10 + n))
    with torch.no_grad():
        torch._foreach_lerp_(list(trainer.ema_model.parameters()), list(trainer.model.parameters()), 1 - decay)
    trainer.step_number = n + 1


def seconds(action, device: torch.device) -> float:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    network = UNet(3, channels=60, multipliers=(1, 2, 3), num_blocks=2)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3, 32, 32)).to(options.device)
    data = ArrayData(torch.randn(64, 3, 32, 32))
    settings = TrainingOptions(batch_size=options.batch_size)
    trainer = Trainer(model, data, DenoisingObjective(), settings)
    config = default.get_config().logging
    safe, bare = [], []

    def safe_step() -> None:
        """A step, and at the usual rate what is taken from the device for the log."""
        trainer.step()
        if trainer.step_number % config.every == 0:
            trainer.pop_metrics()
        assert interruption.signal is None

    with Interruption() as interruption:
        for warm in (*[True] * 3, *[False] * options.pairs):
            order = [(safe, safe_step), (bare, lambda: bare_step(trainer))]
            for times, action in order if len(safe) % 2 else reversed(order):
                taken = seconds(action, options.device)
                if not warm:
                    times.append(taken)
    ratio = statistics.median(s / b for s, b in zip(safe, bare, strict=True))
    step = statistics.median(bare)
    with tempfile.TemporaryDirectory() as folder:
        description = {"model": checkpoint.describe_model(model)}
        saves = [
            seconds(
                lambda: checkpoint.save(Path(folder) / "step.safetensors", 1, description, trainer.state()),
                options.device,
            )
            for _ in range(3)
        ]
    saving = statistics.median(saves) / (config.checkpoint_every * step)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, batch {options.batch_size}, {options.device}: a bare step {1e3 * step:.1f} ms")
    print(f"steps: {100 * (ratio - 1):+.2f} % (median of {options.pairs} pairs)")
    print(
        f"checkpoints: {100 * saving:+.2f} % ({statistics.median(saves):.2f} s every {config.checkpoint_every} steps)"
    )
    print(f"all safety: {100 * (ratio - 1 + saving):+.2f} %")


if __name__ == "__main__":
    main()

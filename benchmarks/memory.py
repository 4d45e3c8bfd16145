"""The memory of evaluation, pictures, sampling and posteriors, compared with that of a training step of the same run.

Each number is of a fresh process. Everything is imported, and the task is run once on images of 8x8 or on 8 points, so
that libraries and kernels are loaded. Then the peak of the process is reset (`/proc/self/clear_refs`: Linux), the task
is run, and the number is the new peak less what the process held before, data included. Batches are those that the
commands choose (`scoresde/_batches.py`):

    python -m benchmarks.memory

The last lines are of a forward pass of the U-Net on 2 images of 3x128x128, and of UNet2DModel of diffusers with as many
features, layers, and attention at the same resolution. Where diffusers is not installed, they are left out.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from samplers import DDIM, Heun, PredictorCorrector, log_prob, sample
from scoresde import Scaling, UNet, elbo
from scoresde.app.pictures import save_picture
from scoresde.data import ArrayData
from scoresde.data.info import DataInfo
from scoresde.inverse import DPS, MMPS, PosteriorModel
from scoresde.operators import Mask
from scoresde.training import Trainer
from sde_configs import build, default, toy

PROBLEMS = {
    "3x64x64, batch 4": ((3, 64, 64), 4),
    "3x128x128, batch 2": ((3, 128, 128), 2),
    "points, batch 512": ((2,), 512),
}
SHOWN = 100  # samples of a picture
DRAWN = {1: 4000, 3: 40}  # of sampling, by the axes of a sample
EVALUATED = {1: 4000, 3: 16}
NETWORKS = {
    "channels 16, levels (1, 2), 1 block": (16, (1, 2), 1),
    "channels 32, levels (1, 2, 2), 2 blocks": (32, (1, 2, 2), 2),
}


class Job:
    """A run in training on random data, and what is done with its model."""

    def __init__(self, shape: tuple[int, ...], batch_size: int, count: int | None = None) -> None:
        self.config = toy.get_config() if len(shape) == 1 else default.get_config()
        self.config.training.batch_size = batch_size
        self.drawn = count or DRAWN[len(shape)]
        self.evaluated = count or EVALUATED[len(shape)]
        values = torch.randn(self.evaluated, *shape)
        if len(shape) == 3:
            values = (64 * values + 128).clamp(0, 255).byte()
        self.data = ArrayData(values, None, Scaling(128.0, 64.0) if len(shape) == 3 else Scaling())
        model = build.build_model(self.config, self.data)
        options = build.build_options(self.config)
        self.trainer = Trainer(model, self.data, build.build_objective(self.config), options)

    def batch_size(self, graphs: int = 0) -> int:
        return build.build_batch_size(self.config, self.trainer.model.shape, self.trainer.device, graphs)

    def training_step(self) -> None:
        self.trainer.step()

    def held_out_loss(self) -> None:
        self.trainer.held_out_loss(self.data)

    def picture(self) -> None:
        model = self.trainer.model
        x, _ = sample(model, Heun(), SHOWN, num_steps=5, batch_size=self.batch_size())
        with tempfile.TemporaryDirectory() as folder:
            save_picture(Path(folder) / "picture.png", model.codec.decode(x), DataInfo.of(self.data, None))

    def sampling(self) -> None:
        sample(self.trainer.model, PredictorCorrector(), self.drawn, num_steps=5, batch_size=self.batch_size())

    def posterior(self, method: Callable[..., PosteriorModel]) -> None:
        """A batch of training's size."""
        model = self.trainer.model
        count = self.config.training.batch_size
        operator = Mask.random(model.shape, 0.3)
        y = operator(torch.zeros(count, *model.shape))
        sample(method(model, operator, 0.05), DDIM(), count, num_steps=3, cond=y, batch_size=count)

    def mmps(self) -> None:
        self.posterior(MMPS)

    def dps(self) -> None:
        self.posterior(DPS)

    def log_density(self) -> None:
        log_prob(self.trainer.model, self.data.all()[0], num_evaluations=5, batch_size=self.batch_size(graphs=1))

    def bound(self) -> None:
        elbo(self.trainer.model, self.data.all()[0], num_evaluations=3, batch_size=self.batch_size())


TASKS: dict[str, Callable[[Job], None]] = {
    "training step": Job.training_step,
    "held-out loss": Job.held_out_loss,
    "picture of training": Job.picture,
    "sampling": Job.sampling,
    "posterior, MMPS": Job.mmps,
    "posterior, DPS": Job.dps,
    "log density": Job.log_density,
    "bound": Job.bound,
}


def megabytes(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024 / 1e6


def peak_of(action: Callable[[], object]) -> float:
    """The largest memory that the process holds during an action, in MB above what it holds before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    action()
    return megabytes("VmHWM") - before


def measure_task(problem: str, task: str) -> float:
    """The peak of a task."""
    shape, batch_size = PROBLEMS[problem]
    TASKS[task](Job((3, 8, 8) if len(shape) == 3 else (2,), 1, 8))
    job = Job(shape, batch_size)
    return peak_of(lambda: TASKS[task](job))


def our_network(channels: int, multipliers: tuple[int, ...], num_blocks: int) -> nn.Module:
    return UNet(3, channels, multipliers, num_blocks)


def diffusers_network(channels: int, multipliers: tuple[int, ...], num_blocks: int) -> nn.Module:
    from diffusers import UNet2DModel

    network: nn.Module = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels * m for m in multipliers),
        layers_per_block=num_blocks,
        down_block_types=("DownBlock2D",) * len(multipliers),
        up_block_types=("UpBlock2D",) * len(multipliers),
        attention_head_dim=32,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    return network


LIBRARIES = {"scoresde": our_network, "diffusers": diffusers_network}


@torch.no_grad()
def measure_network(settings: str, library: str) -> float:
    """The peak of a forward pass on 2 images of 3x128x128."""
    network = LIBRARIES[library](*NETWORKS[settings]).eval()
    network(torch.randn(1, 3, 8, 8), torch.zeros(1))
    x = torch.randn(2, 3, 128, 128)
    return peak_of(lambda: network(x, torch.zeros(2)))


def in_a_process(*arguments: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def compare(group: str, column: str, unit: str, groups: Sequence[str], columns: Sequence[str]) -> None:
    """A table of peaks: for each group the columns, beside the first of them."""
    print(f"{group:<42}{column:<24}{'MB':>8}{unit:>12}")
    for name in groups:
        first = None
        for each in columns:
            peak = in_a_process(name, each)
            first = first or peak
            print(f"{name:<42}{each:<24}{peak:>8.1f}{peak / first:>12.2f}", flush=True)


def main() -> None:
    compare("", "task", "of a step", list(PROBLEMS), list(TASKS))
    known = [name for name in LIBRARIES if name == "scoresde" or importlib.util.find_spec(name)]
    print()
    compare("forward pass, 2 of 3x128x128", "library", "of ours", list(NETWORKS), known)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(measure_task(*sys.argv[1:]) if sys.argv[1] in PROBLEMS else measure_network(*sys.argv[1:]))
    else:
        main()

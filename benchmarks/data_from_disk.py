"""Training on data that are read from disk, compared with the same data in memory.

python -m benchmarks.data_from_disk FOLDER [GIGABYTES]

A file of so many gigabytes (3 by default) is written to FOLDER for each case, and `data.max_gigabytes` is set below
its size. Four trainers take turns, in an order that changes from round to round. Two have the data in memory; the
second shows how much of a ratio is due to other work of the machine. Two read from disk: before each turn of "cold",
the system is asked to drop the file from its cache, so that every row comes from the disk, as it does for data larger
than the machine's memory; "warm" is with what the system has kept. A ratio is the median over the rounds of a
trainer's time over that of the first, with its quartiles. CPU time is that of all threads. All must end with the same
bytes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from scoresde import MLP, VPSDE, EDMParametrization, NetworkScoreModel, TrainingOptions, UNet
from scoresde.data import ArrayData, ReadOptions, load
from scoresde.data.info import DataInfo
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer

ROUNDS = 40
CASES = {  # shape and type of a sample, network, batch, steps of a turn
    "images 3x32x32, U-Net (8 channels)": ((3, 32, 32), np.uint8, lambda: UNet(3, channels=8), 8, 8),
    "images 3x64x64, U-Net (8 channels)": ((3, 64, 64), np.uint8, lambda: UNet(3, channels=8), 2, 8),
    "64 floats, MLP (width 256)": ((64,), np.float32, lambda: MLP(64, width=256, depth=3), 512, 20),
}


def write(path: Path, shape: tuple[int, ...], kind: type, num_bytes: float) -> None:
    """Writes random samples."""
    count = int(num_bytes / (np.prod(shape) * np.dtype(kind).itemsize))
    array = np.lib.format.open_memmap(path, "w+", kind, (count, *shape))
    generator = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        part = array[start : start + 10_000]
        part[:] = generator.integers(0, 256, part.shape) if kind == np.uint8 else generator.normal(size=part.shape)
    array.flush()


def ready(path: Path, options: ReadOptions) -> tuple[ArrayData, float]:
    """The training samples, and the seconds until all is known of them that a run asks for."""
    start = time.perf_counter()
    train, held_out = load(path=str(path), options=options).split(0.01)
    DataInfo.of(train, held_out)
    train.rms()
    return train, time.perf_counter() - start


def trainer_of(data: ArrayData, network: torch.nn.Module, batch_size: int) -> Trainer:
    """A trainer of a fresh network."""
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), data.shape, data.codec)
    return Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=10_000, batch_size=batch_size))


def turn(trainer: Trainer, num_steps: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads, of some steps."""
    start, used = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        trainer.step()
    return time.perf_counter() - start, time.process_time() - used


def forget(path: Path) -> None:
    """Asks the system to drop a file from its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def compare(name: str, path: Path, gigabytes: float) -> None:
    """Prints a line for a case."""
    shape, kind, network, batch_size, num_steps = CASES[name]
    write(path, shape, kind, gigabytes * 1e9)
    limit = gigabytes / 3
    memory, in_memory = ready(path, ReadOptions(max_gigabytes=2 * gigabytes))
    forget(path)
    disk, from_disk = ready(path, ReadOptions(max_gigabytes=limit, from_disk=True))
    trainers = {}
    for way, data in [("memory", memory), ("memory again", memory), ("disk, cold", disk), ("disk, warm", disk)]:
        torch.manual_seed(0)
        trainers[way] = trainer_of(data, network(), batch_size)
        turn(trainers[way], 2)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in trainers}
    for number in range(ROUNDS):
        ways = list(trainers)
        start = number % len(ways)
        for way in ways[start:] + ways[:start]:
            if way == "disk, cold":
                forget(path)
            times[way].append(turn(trainers[way], num_steps))
    ends = [trainer.model.state_dict() for trainer in trainers.values()]
    for end in ends[1:]:
        assert all(torch.equal(value, end[key]) for key, value in ends[0].items())
    step = statistics.median(seconds for seconds, _ in times["memory"]) / num_steps
    print(f"{name}, batch {batch_size}: {len(memory):,} samples; a step in memory takes {1e3 * step:.1f} ms")
    print(f"    ready to train: {in_memory:.1f} s in memory, {from_disk:.1f} s from disk (cold)")
    for way in list(trainers)[1:]:
        ratios = [a[0] / b[0] for a, b in zip(times[way], times["memory"], strict=True)]
        cpu = sum(used for _, used in times[way]) / sum(used for _, used in times["memory"])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"    {way}: time {middle:.3f} ({low:.3f} to {high:.3f}), CPU time {cpu:.3f}", flush=True)
    path.unlink()


def main(folder: str, gigabytes: str = "3") -> None:
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}; files of {gigabytes} GB, data.max_gigabytes a third of it; from disk over memory"
    )
    for name in CASES:
        compare(name, Path(folder) / "data_from_disk.npy", float(gigabytes))


if __name__ == "__main__":
    main(*sys.argv[1:])

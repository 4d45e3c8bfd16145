"""From files to data that is ready to train on: time, CPU time and memory.

python -m benchmarks.data_ready PATH [IMAGE_SIZE]

"Ready" is read, decoded and split as training does it. Memory is the largest that the process ever held, less what
it held once everything was imported, less the decoded array itself. Each run is a fresh process: the largest memory of
a process never falls.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

RUNS = 3


def memory() -> float:
    """Largest resident size so far, in MB (Linux counts in units of 1024 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(path: str, size: tuple[int, ...]) -> str:
    """One run, as a line of numbers: seconds, user and system CPU seconds, MB above, MB of the array, samples."""
    from scoresde import data  # what a training run has imported before it reads

    data.load("modes")
    before = memory()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    loaded = data.load(path=path, options=data.ReadOptions(image_size=size))
    array = loaded.values.numel() / 1e6
    count = len(loaded)
    loaded, _ = loaded.split(0.1)
    loaded.std()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - usage.ru_utime, after.ru_stime - usage.ru_stime
    return f"{seconds} {cpu[0]} {cpu[1]} {memory() - before - array} {array} {count}"


def main(path: str, size: str = "0") -> None:
    command = [sys.executable, "-m", "benchmarks.data_ready", path, size, "once"]
    lines = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(RUNS)]
    runs = [tuple(map(float, line.split())) for line in lines]
    seconds, user, system, above, array, count = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"{count:,.0f} samples, decoded array {array:.0f} MB; medians of {RUNS} runs")
    print(f"ready in {seconds:.2f} s ({user:.2f} s user and {system:.2f} s system CPU)")
    print(f"memory above the decoded array: {above:.0f} MB")


if __name__ == "__main__":
    if sys.argv[3:] == ["once"]:
        print(measure(sys.argv[1], (int(sys.argv[2]),)))
    else:
        main(*sys.argv[1:])

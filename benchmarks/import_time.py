"""The cost of `import scoresde, samplers` on top of `import torch`: the median ratio of CPU times of fresh processes.

The two kinds of process run in turn, so that a busy machine disturbs both alike:

    python -m benchmarks.import_time
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

ROUNDS = 10


def cpu_seconds(code: str) -> float:
    """CPU time of a fresh process that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    cpu_seconds("import scoresde, samplers")  # writes the byte code
    pairs = [(cpu_seconds("import torch"), cpu_seconds("import torch, scoresde, samplers")) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / torch for torch, ours in pairs)
    torch, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"import torch {torch:.2f} s, with scoresde and samplers {ours:.2f} s; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()

"""The program as several processes, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TRAIN = [
    *("--mode=train", "--config=toy", "--device=cpu", "--config.network.width=32", "--config.training.num_steps=50"),
    *("--config.training.batch_size=64", "--config.logging.every=1", "--config.network.label_dropout=0.2"),
]


def command(processes: int, *arguments: str) -> list[str]:
    """The command line of main.py in some processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "main.py"), *arguments]


def run(processes: int, folder: Path, *arguments: str) -> str:
    """Runs main.py in a folder, which must succeed; returns what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command(processes, *arguments),
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

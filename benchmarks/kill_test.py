"""Kills a small run at random moments, writes included, until it is trained; its end must be as if undisturbed.

The run saves at every second step, so that many kills fall into the writing of a checkpoint. After each SIGKILL the
same command is started again. At the end every tensor of the last checkpoint and every byte of metrics.jsonl are
compared with those of a run that was left alone:

    python -m benchmarks.kill_test [--kills 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scoresde.app.run_folder import RunFolder

COMMAND = [
    sys.executable, "main.py", "--mode=train", "--config=toy", "--device=cpu", "--config.network.width=64",
    "--config.training.batch_size=64", "--config.logging.every=1", "--config.logging.checkpoint_every=2",
]  # fmt: skip
ROOT = Path(__file__).parent.parent


def start(workdir: Path, num_steps: int) -> subprocess.Popen[bytes]:
    """Starts the run, or goes on with it."""
    command = [*COMMAND, f"--workdir={workdir}", f"--config.training.num_steps={num_steps}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a run, which must be a good one."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the run ended with status {process.returncode}: {errors.decode()}")


def kill_somewhere(workdir: Path, num_steps: int, dice: random.Random) -> bool:
    """Starts the run and kills it at a random moment; whether it was still running.

    One in five dies somewhere between its start and its first steps, the others among steps and checkpoints: a random
    moment after their first new line of metrics.
    """
    process = start(workdir, num_steps)
    metrics = RunFolder(workdir).metrics
    size = metrics.stat().st_size if metrics.exists() else 0
    if dice.random() < 0.2:
        time.sleep(dice.random() * 4)
    else:
        while process.poll() is None:  # a continued run cuts its log first, so any change is a sign of life
            if metrics.exists() and metrics.stat().st_size != size:
                break
            time.sleep(0.001)
        time.sleep(dice.random() * 0.15)
    alive = process.poll() is None
    if alive:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in the last checkpoints and metrics of two runs."""
    first, second = (RunFolder(path).newest_checkpoint() for path in (one, other))
    assert first is not None
    assert second is not None
    different = [f"step {first.step} and {second.step}"] if first.step != second.step else []
    different += sorted(first.tensors.keys() ^ second.tensors.keys())
    common = first.tensors.keys() & second.tensors.keys()
    different += [name for name in sorted(common) if not torch.equal(first.tensors[name], second.tensors[name])]
    same_metrics = RunFolder(one).metrics.read_bytes() == RunFolder(other).metrics.read_bytes()
    return different if same_metrics else [*different, "metrics.jsonl"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps_per_kill", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    num_steps = options.steps_per_kill * options.kills
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        killed = Path(folder) / "killed"
        finish(start(undisturbed, num_steps))
        kills = 0
        half_written = 0
        while kills < options.kills and kill_somewhere(killed, num_steps, dice):
            kills += 1
            half_written += any((killed / "checkpoints").glob(".*.partial"))
            newest = RunFolder(killed).newest_checkpoint()
            print(f"kill {kills}: step {newest.step if newest else 0} of {num_steps}", flush=True)
        finish(start(killed, num_steps))
        different = differences(undisturbed, killed)
    print(f"{kills} kills, {half_written} of them while a checkpoint was being written; ", end="")
    print("the end is that of an undisturbed run" if not different else f"different: {', '.join(different)}")
    return 1 if different or kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())

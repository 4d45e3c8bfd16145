"""Kills a small run at random moments, writes included, until it is trained; its end must be as if undisturbed.

Every second kill is by SIGKILL, the others by the signals that end a run in order (`scoresde.app.interrupt`) in turn.
The run saves at every second step. One kill in six falls between the start and the first step. The others are timed
from the first new line of metrics, as the start takes seconds; half of them wait for a checkpoint that is being
written. The process is held (SIGSTOP) while the test looks where it is, and dies there. Then the same command is
started again. At the end the last checkpoint and metrics.jsonl must have the bytes of a run that was left alone:

    python -m benchmarks.kill_test [--kills 200] [--seed 0]
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
from collections import Counter
from pathlib import Path

from scoresde.app.interrupt import SIGNALS
from scoresde.app.run_folder import RunFolder

COMMAND = [
    sys.executable, "main.py", "--mode=train", "--config=toy", "--device=cpu", "--config.network.width=64",
    "--config.training.batch_size=64", "--config.logging.every=3", "--config.logging.checkpoint_every=2",
]  # fmt: skip
ROOT = Path(__file__).parent.parent
ORDER = [number for one in SIGNALS for number in (signal.SIGKILL, one)]
PLACES = ("starting", "writing a checkpoint", "between")


def start(workdir: Path, num_steps: int) -> subprocess.Popen[bytes]:
    """Starts the run, or goes on with it."""
    command = [*COMMAND, f"--workdir={workdir}", f"--config.training.num_steps={num_steps}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes], *statuses: int) -> None:
    """Waits for the end of a run, which must have one of some statuses."""
    _, errors = process.communicate()
    if process.returncode not in statuses:
        raise RuntimeError(f"the run ended with status {process.returncode}: {errors.decode()}")


def is_writing(run: RunFolder) -> bool:
    """Whether a checkpoint is half written."""
    return any(run.checkpoints.glob(".*.partial"))


def wait_for_a_moment(process: subprocess.Popen[bytes], run: RunFolder, dice: random.Random) -> bool:
    """Waits for a random moment of a run that was just started; whether it comes after a new line of metrics."""
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    if dice.random() < 1 / 6:
        time.sleep(dice.random() * 4)
        return run.metrics.exists() and run.metrics.stat().st_size != size
    while process.poll() is None:  # a continued run cuts its log first, so any change is a sign of life
        if run.metrics.exists() and run.metrics.stat().st_size != size:
            break
        time.sleep(0.001)
    time.sleep(dice.random() * 0.4)
    if dice.random() < 1 / 2:
        while process.poll() is None and not is_writing(run):
            pass
    return True


def kill_somewhere(run: RunFolder, num_steps: int, number: int, dice: random.Random) -> str | None:
    """Starts the run and ends it by a signal at a random moment; one of `PLACES`, or None if it had ended before."""
    process = start(run.path, num_steps)
    began = wait_for_a_moment(process, run, dice)
    process.send_signal(signal.SIGSTOP)
    held = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert held is not None
    if held.si_code != os.CLD_STOPPED:
        finish(process, 0)
        return None
    place = PLACES[1] if is_writing(run) else PLACES[2] if began else PLACES[0]
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    finish(process, -number, 128 + number)
    return place


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """What is not the same in two runs: their last checkpoint, or their metrics."""
    ends = one.all_checkpoints()[-1], other.all_checkpoints()[-1]
    same = ends[0].name == ends[1].name and ends[0].read_bytes() == ends[1].read_bytes()
    different = [] if same else [f"{ends[0].name} and {ends[1].name}"]
    same_metrics = one.metrics.read_bytes() == other.metrics.read_bytes()
    return different if same_metrics else [*different, "metrics.jsonl"]


def report(kills: Counter[tuple[str, str]]) -> None:
    """Prints how many kills there were, by signal and place."""
    print(f"{'':10}{'kills':>8}" + "".join(f"{place:>24}" for place in PLACES))
    names = list(dict.fromkeys(signal.Signals(number).name for number in ORDER))
    for name in [*names, "all"]:
        of_name = [sum(n for (s, p), n in kills.items() if name in ("all", s) and p == place) for place in PLACES]
        print(f"{name:10}{sum(of_name):>8}" + "".join(f"{count:>24}" for count in of_name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps_per_kill", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    num_steps = options.steps_per_kill * options.kills
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:  # as of a command in the background, and inherited
            signal.signal(number, signal.SIG_DFL)
    kills: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = RunFolder(Path(folder) / "undisturbed")
        killed = RunFolder(Path(folder) / "killed")
        finish(start(undisturbed.path, num_steps), 0)
        for k in range(options.kills):
            number = ORDER[k % len(ORDER)]
            place = kill_somewhere(killed, num_steps, number, dice)
            if place is None:
                break
            name = signal.Signals(number).name
            kills[name, place] += 1
            reached = [path.stem for path in killed.all_checkpoints()[-1:]]
            print(f"kill {k + 1}: {name}, {place}; {', '.join(reached)} of {num_steps}", file=sys.stderr, flush=True)
        finish(start(killed.path, num_steps), 0)
        different = differences(undisturbed, killed)
    report(kills)
    print(f"{kills.total()} kills of {options.kills}; ", end="")
    print("the end is that of an undisturbed run" if not different else f"different: {', '.join(different)}")
    return 1 if different or kills.total() < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())

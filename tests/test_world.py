"""Several processes that torchrun starts: the same training and the same samples as one, and no hang when one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.training.parallel import ALONE, World, share

ROOT = Path(__file__).parent.parent
TRAIN = [
    *("--mode=train", "--config=toy", "--device=cpu", "--config.network.width=32", "--config.training.num_steps=50"),
    *("--config.training.batch_size=64", "--config.logging.every=1", "--config.network.label_dropout=0.2"),
]


@pytest.mark.parametrize(("count", "num_parts"), [(10, 3), (2, 4), (64, 2), (1, 1)])
def test_shares_are_consecutive_and_even(count, num_parts):
    parts = [share(count, k, num_parts) for k in range(num_parts)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_talks_to_nobody():
    x = torch.randn(3)
    assert World(0, 1) == ALONE
    assert ALONE.leader
    assert ALONE.mean(x) is x
    ALONE.wait(x.device)
    assert ALONE.any(True, x.device)
    assert not ALONE.any(False, x.device)


def command(processes, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "main.py"), *arguments]


def run(processes, folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command(processes, *arguments),
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One folder with the same run by one process and by two, and samples of the first by one, two and three."""
    folder = tmp_path_factory.mktemp("world")
    run(1, folder, *TRAIN, "--workdir=one")
    run(2, folder, *TRAIN, "--workdir=two", "--config.training.accumulate=2")
    return folder


def test_two_processes_train_as_one(trained):
    one, two = (np.array([r["loss"] for r in records(trained / name)]) for name in ("one", "two"))
    assert len(one) == 50
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    assert one.std() > 0.01  # each step has a batch of its own


def test_samples_do_not_depend_on_the_number_of_processes(trained):
    samples = []
    for processes in (1, 3):
        arguments = ["--mode=sample", "--sampler=ancestral", "--num_steps=20", "--num_samples=31", "--workdir=one"]
        run(processes, trained, *arguments, f"--output={processes}.png", "--device=cpu")
        samples.append(np.load(trained / f"{processes}.npz"))
    assert samples[0]["samples"].shape == (31, 2)
    np.testing.assert_allclose(samples[1]["samples"], samples[0]["samples"], rtol=0, atol=1e-5)
    assert (samples[1]["labels"] == samples[0]["labels"]).all()


FAILING = """
import os, threading, time
from sde_configs import toy

def get_config():
    if os.environ["RANK"] == "1":
        {failure}
    config = toy.get_config()
    config.training.num_steps = 1_000_000
    return config

def die():
    while not os.path.exists("failing/metrics.jsonl"):
        time.sleep(0.01)
    os._exit(7)
"""
FAILURES = {
    "before training": "raise ValueError('broken on one rank')",
    "in training": "threading.Thread(target=die, daemon=True).start()",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_a_rank_that_fails_ends_the_run(tmp_path, failure):
    (tmp_path / "failing.py").write_text(FAILING.format(failure=failure))
    arguments = ["--mode=train", "--config=failing.py", "--device=cpu", "--workdir=failing"]
    began = time.monotonic()
    result = subprocess.run(
        command(2, *arguments, "--config.logging.every=5", "--config.training.batch_size=64"),
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert time.monotonic() - began < 100
    expected = (
        "error: config='failing.py': ValueError ['broken on one rank']" if "raise" in failure else "exitcode  : 7"
    )
    assert expected in result.stderr, result.stderr

"""Several processes: the same training and the same samples as one, and no hang when one fails."""

from __future__ import annotations

import os
import subprocess
import time

import numpy as np
import pytest
import torch

from scoresde import UsageError, checkpoint
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer, TrainingOptions
from scoresde.training.parallel import ALONE, World, join_world, share
from tests.processes import ROOT, TRAIN, command, records, run
from tests.training.jobs import CPU, KINDS, asked, course, in_two_parts, recorded, together, trainer_of
from tests.training.trainers import advance, assert_close_state, assert_same_state, gaussian_data, make_model


@pytest.mark.parametrize(("count", "num_parts"), [(10, 3), (2, 4), (64, 2), (1, 1)])
def test_shares_are_consecutive_and_even(count, num_parts):
    parts = [share(count, k, num_parts) for k in range(num_parts)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_communicates_with_nobody():
    x = torch.randn(3)
    assert World(0, 1) == ALONE
    assert ALONE.leader
    assert ALONE.mean(x) is x
    ALONE.wait(x.device)
    assert ALONE.any(True, x.device)
    assert not ALONE.any(False, x.device)
    assert join_world(CPU) == (ALONE, CPU)


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    options = TrainingOptions(batch_size=12, accumulate=4)
    with pytest.raises(UsageError, match=r"batch_size=12: must be a multiple of .*accumulate=4 times .* processes, 2"):
        Trainer(make_model(CPU), gaussian_data(), DenoisingObjective(), options, 0, World(0, 2))


def test_alone_there_is_nothing_to_shard():
    whole, sharded = trainer_of("labels"), trainer_of("labels", shard=True)
    assert_same_state(advance(whole, 2).state(), advance(sharded, 2).state())


# two processes of the trainer


@pytest.fixture(scope="module")
def one_in_two_parts():
    """What one process finds alone."""
    return in_two_parts()


@pytest.fixture(scope="module")
def two(tmp_path_factory, one_in_two_parts):
    """What each of two processes finds."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(one_in_two_parts["first"], folder / "state of one.pt")
    return together(folder)


@pytest.mark.parametrize("job", ["recorded", "recorded in parts"])
def test_each_sample_is_given_the_same_numbers_in_any_number_of_processes(two, job):
    """Its times, noise, flip, place in the unit interval and hidden label, to the last bit."""
    one = recorded()
    assert one["cond"].unique().tolist() == [0, 1, 2, 3]  # 3 stands for a hidden label
    for name, value in one.items():
        assert torch.equal(torch.cat([rank[job][name] for rank in two], 1), value), name


def test_batches_that_a_user_defines_are_asked_for_the_share_of_each_process(two):
    assert asked() == [[step, 0, 8] for step in range(3)]
    assert [rank["asked"] for rank in two] == [
        [[step, 0, 4] for step in range(3)],
        [[step, 4, 8] for step in range(3)],
    ]


ROUNDING = {"rtol": 1e-9, "atol": 1e-13}  # float64: a few steps enlarge the rounding of a sum
FLOAT32 = 1e-6  # losses are recorded in float32


@pytest.mark.parametrize("kind", KINDS)
def test_processes_train_as_one(two, kind):
    """Within rounding, and not to the bit: a gradient is a mean of means, which are summed in another order.

    Replicated, and sharded with a batch in parts. The average is looked at after each step.
    """
    one = course(kind)
    for way in ("replicated", "sharded"):
        first, second = (rank[f"{kind}, {way}"] for rank in two)
        assert_same_state(first["state"], second["state"])
        assert_close_state(first["state"], one["state"], **ROUNDING)
        np.testing.assert_allclose(first["losses"], one["losses"], rtol=FLOAT32)
        np.testing.assert_allclose(first["held out"], one["held out"], **ROUNDING)
        assert first["skipped"] == one["skipped"]
        assert first["losses"] == pytest.approx(second["losses"], nan_ok=True, abs=0)
    assert one["skipped"] == [0, int(kind == "a gradient that is not finite"), 0, 0]
    assert np.std(one["held out"]) > 1e-4  # the average moves
    weights = [name for name in one["state"] if name.startswith("weights")]
    for name in weights:
        assert not torch.equal(one["state"][name], one["state"][name.replace("weights", "ema", 1)]), name


def test_the_state_of_a_sharded_run_is_whole_and_continues_on_one_process_and_on_two(two, one_in_two_parts):
    one = one_in_two_parts
    sharded, from_one = (two[0][f"sharded, {how}"] for how in ("in two parts", "from the state of one"))
    single = in_two_parts(state=sharded["first"])
    for found in (sharded, from_one, single):
        for part in ("first", "last"):
            record = found[part].pop("record"), one[part].pop("record")  # of losses, float32
            torch.testing.assert_close(*record, rtol=FLOAT32, atol=0)
            assert_close_state(found[part], one[part], **ROUNDING)
            found[part]["record"], one[part]["record"] = record
        assert found["loss"] == pytest.approx(one["loss"], rel=FLOAT32)  # of all five steps
    shapes = {name: value.shape for name, value in trainer_of("labels").model.state_dict().items()}
    for kind in ("weights", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
        for name, shape in shapes.items():
            assert sharded["last"][f"{kind}.score.{name}"].shape == shape


# two processes of the program


SHORT = [*TRAIN, "--config.training.num_steps=16", "--config.logging.checkpoint_every=6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run by one process."""
    folder = tmp_path_factory.mktemp("world")
    assert main([*SHORT, f"--workdir={folder}/one"]) == 0
    return folder


def final_tensors(folder):
    return checkpoint.load(RunFolder(folder).all_checkpoints()[-1]).tensors


@pytest.mark.parametrize(
    ("name", "option"), [("replicated", "--config.training.accumulate=2"), ("sharded", "--config.training.shard=True")]
)
def test_two_processes_of_the_program_train_as_one(trained, name, option):
    """With checkpoints, held-out losses and pictures of the average on the way."""
    run(2, trained, *SHORT, f"--workdir={name}", option)
    one, found = (records(trained / folder) for folder in ("one", name))
    losses = np.array([record["loss"] for record in one])
    assert len(losses) == 16
    assert losses.std() > 0.01  # each step has a batch of its own
    np.testing.assert_allclose([record["loss"] for record in found], losses, rtol=0, atol=1e-5)
    held_out = [[r["held_out_loss"] for r in lines if "held_out_loss" in r] for lines in (found, one)]
    assert len(held_out[0]) == 3
    np.testing.assert_allclose(*held_out, rtol=0, atol=1e-5)
    tensors = [final_tensors(trained / folder) for folder in (name, "one")]
    assert_close_state(*tensors, rtol=0, atol=1e-4)
    samples = {path.name for path in (trained / name / "samples").iterdir()}
    assert samples == {path.name for path in (trained / "one" / "samples").iterdir()}


def test_two_processes_begin_from_a_checkpoint_as_one(trained):
    """With sharded weights; and they go on from their own checkpoints."""
    arguments = ["--mode=train", "--device=cpu", "--config.logging.checkpoint_every=3", "--config.training.shard=True"]
    for steps in (5, 8):
        length = f"--config.training.num_steps={steps}"
        assert main([*arguments, length, f"--init_from={trained}/one", f"--workdir={trained}/from-1"]) == 0
        run(2, trained, *arguments, length, "--init_from=one", "--workdir=from-2")
    one, two = (records(trained / folder) for folder in ("from-1", "from-2"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == list(range(9))
    assert one[0]["held_out_loss"] == records(trained / "one")[-1]["held_out_loss"]
    for name in ("loss", "held_out_loss"):
        pairs = [(a[name], b[name]) for a, b in zip(one, two, strict=True) if name in a]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=0, atol=1e-5)


def test_samples_do_not_depend_on_the_number_of_processes(trained):
    arguments = ["--mode=sample", "--sampler=ancestral", "--num_steps=20", "--num_samples=31", "--device=cpu"]
    assert main([*arguments, f"--workdir={trained}/one", f"--output={trained}/1.png"]) == 0
    run(2, trained, *arguments, "--workdir=one", "--output=2.png")
    found = []
    for processes in (1, 2):
        with np.load(trained / f"{processes}.npz") as arrays:
            found.append(dict(arrays))
    one, two = found
    assert one["samples"].shape == (31, 2)
    np.testing.assert_allclose(two["samples"], one["samples"], rtol=0, atol=1e-5)
    assert (two["labels"] == one["labels"]).all()


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

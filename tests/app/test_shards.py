"""Samples in shards: a run of sampling that is killed goes on, and processes share the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samplers import Samples
from samplers.sampling import Prepared
from scoresde.app import sample as sample_module
from scoresde.app.cli import main
from scoresde.app.shards import SampleShards
from scoresde.training.parallel import World
from tests.limits import few_open_files
from tests.runs import drawn

MANY = [
    *("--mode=sample", "--sde=vp", "--sampler=ancestral", "--num_steps=5", "--device=cpu", "--num_samples=23"),
    "--config.sampling.batch_size=5",
]


def assert_same_numbers(one, other):
    """Two files of samples, labels and seeds are equal."""
    with np.load(one) as first, np.load(other) as second:
        for key in ("samples", "labels", "seeds"):
            assert np.array_equal(first[key], second[key]), key


class Log(list):
    """First indices of batches; once there are `limit`, the run is stopped."""

    limit = None


@pytest.fixture
def log(monkeypatch):
    """The first index of each batch that is drawn."""
    draw = Prepared.draw
    log = Log()

    def noted(self, noise, *arguments):
        if log.limit is not None and len(log) == log.limit:
            log.limit = None
            raise KeyboardInterrupt
        log.append(noise.indices[0].item())
        return draw(self, noise, *arguments)

    monkeypatch.setattr(Prepared, "draw", noted)
    return log


def test_sampling_that_is_killed_goes_on_where_it_stopped(work, tmp_path, log, capsys):
    assert main([*MANY, f"--output={tmp_path / 'whole.png'}"]) == 0
    assert log == [0, 5, 10, 15, 20]
    log.clear()
    log.limit = 3
    again = [*MANY, f"--output={tmp_path / 'again.png'}"]
    assert main(again) == 130
    assert not (tmp_path / "again.npz").exists()
    other = [argument.replace("ancestral", "ddim") for argument in again]
    assert main(other) == 0  # another command begins anew, and leaves the shards alone
    before = len(log)
    capsys.readouterr()
    assert main(again) == 0
    assert "going on: 3 of 5 shards are there" in capsys.readouterr().out
    assert log[:3] == [0, 5, 10]
    assert log[before:] == [15, 20]
    assert not list(tmp_path.glob(".*"))
    assert_same_numbers(tmp_path / "whole.npz", tmp_path / "again.npz")


@pytest.mark.parametrize(
    "change",
    [
        "--seed=1",
        "--labels=3",
        "--num_samples=22",
        "--num_steps=6",
        "--sampler=ddim",
        "--config.sampling.ancestral.variance=beta",
        "--config.sampling.threshold=static",
        "--config.sampling.batch_size=6",
    ],
)
def test_shards_of_another_command_are_not_taken(work, tmp_path, log, change):
    output = f"--output={tmp_path / 'a.png'}"
    log.limit = 2
    assert main([*MANY, output]) == 130
    log.clear()
    assert main([*MANY, output, change]) == 0
    assert log[0] == 0


def test_shards_are_there_whole_or_not_at_all(tmp_path):
    shards = SampleShards(tmp_path / "a.png", {"seed": 0})
    assert not shards.has(5)
    shards.write(5, Samples(torch.arange(6.0).reshape(3, 2), 7))
    assert shards.has(5)
    x, nfe = shards.read(5)
    assert (x.tolist(), nfe) == ([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], 7)
    again, other = (SampleShards(tmp_path / "a.png", {"seed": seed}) for seed in (0, 1))
    assert again.has(5)
    assert not other.has(5)
    shards.remove()
    assert not again.has(5)


def test_two_shards_hold_what_one_would(work, tmp_path):
    _, one = drawn(tmp_path / "one.png", "--sampler=ancestral")
    _, two = drawn(tmp_path / "two.png", "--sampler=ancestral", "--config.sampling.batch_size=3")
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)  # matrix products round by batch size


def test_there_may_be_more_shards_than_files_can_be_open(work, tmp_path):
    arguments = ["--config.sampling.batch_size=1", "--num_samples=70", "--sampler=ddim"]
    drawn(tmp_path / "one.png", *arguments)
    with few_open_files(12):
        drawn(tmp_path / "two.png", *arguments)
    assert_same_numbers(tmp_path / "one.npz", tmp_path / "two.npz")


@pytest.mark.parametrize("sampler", ["ancestral", "auto", "pc"])
def test_two_processes_draw_what_one_does(work, tmp_path, monkeypatch, log, capsys, sampler):
    """Each draws its share of the shards; the leader, which comes last here, puts them together."""
    size = "--config.sampling.batch_size=3"
    drawn(tmp_path / "one.png", f"--sampler={sampler}", size)
    assert log[-2:] == [0, 3]  # after those of a pilot run
    monkeypatch.setattr(World, "wait", lambda *_: None)
    arguments = ["--mode=sample", "--workdir=runs/toy", "--num_samples=6", "--num_steps=5", "--device=cpu"]
    for rank, share in ((1, [3]), (0, [0])):
        log.clear()
        monkeypatch.setattr(sample_module, "join_world", lambda device, rank=rank: (World(rank, 2), device))
        capsys.readouterr()
        assert main([*arguments, f"--sampler={sampler}", size, f"--output={tmp_path / 'two.png'}"]) == 0
        assert log == share
        assert ("picture: " in capsys.readouterr().out) == (rank == 0)
        assert (tmp_path / "two.npz").exists() == (rank == 0)
    assert_same_numbers(tmp_path / "one.npz", tmp_path / "two.npz")


def test_two_commands_of_the_same_samples_do_not_meet(work, tmp_path, monkeypatch, capsys):
    """The second is told to wait; the first ends as if alone."""
    command = [*MANY, f"--output={tmp_path / 'a.png'}"]
    draw = sample_module.draw
    said = []

    def meanwhile(*arguments):
        draw(*arguments)
        monkeypatch.setattr(sample_module, "draw", draw)
        capsys.readouterr()
        said.append(main(command))
        said.append(capsys.readouterr().err)

    monkeypatch.setattr(sample_module, "draw", meanwhile)
    assert main(command) == 0
    assert said[0] == 2
    assert "another command is drawing these samples; wait until it is done" in said[1]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.npz", "a.png"]


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"\0" * len(content)])
def test_a_damaged_shard_is_named_and_the_rest_is_kept(work, tmp_path, log, capsys, damage):
    output = tmp_path / "x.png"
    log.limit = 3
    assert main([*MANY, f"--output={output}"]) == 130
    shard = sorted(next(tmp_path.glob(".x.*.shards")).glob("*.npz"))[1]
    shard.write_bytes(damage(shard.read_bytes()))
    assert main([*MANY, f"--output={output}"]) == 2
    assert f"{shard}: is damaged" in capsys.readouterr().err
    shard.unlink()
    assert main([*MANY, f"--output={output}"]) == 0
    assert log == [0, 5, 10, 15, 20, 5]

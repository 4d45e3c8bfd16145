"""Runs on data that are read from disk: the same runs as on data in memory, and free to change between the two."""

import json

import numpy as np
import pytest

from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from tests.data.samples import noise, save
from tests.runs import DIGITS, assert_same_run, final_tensors, killed_at, train_logged

DISK = "--config.data.from_disk=True"


@pytest.fixture
def points(tmp_path):
    values = np.random.default_rng(0).normal(size=(100, 2))
    np.save(tmp_path / "x.npy", values)
    return [f"--config.data.path={tmp_path / 'x.npy'}", "--config.data.class_conditional=False"]


def test_a_run_from_disk_is_the_run_in_memory(tmp_path, points):
    assert train_logged(tmp_path / "memory", *points) == 0
    assert train_logged(tmp_path / "disk", *points, DISK, "--config.data.max_gigabytes=1e-6") == 0
    assert_same_run(tmp_path / "memory", tmp_path / "disk")


@pytest.mark.parametrize("then", [[], [DISK]])
def test_a_run_that_is_killed_goes_on_in_either_way(tmp_path, points, monkeypatch, then):
    assert train_logged(tmp_path / "whole", *points) == 0
    with killed_at(monkeypatch, 11):
        train_logged(tmp_path / "run", *points, DISK)
    assert train_logged(tmp_path / "run", *points, *then) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_folder_of_images_that_is_converted(tmp_path, capsys):
    for i in range(16):
        save(tmp_path / f"photos/{'cat' if i % 2 else 'dog'}/{i}.png", noise(8, 8, seed=i))
    arguments = [*DIGITS, f"--config.data.path={tmp_path / 'photos'}"]
    cached = [DISK, f"--config.data.cache={tmp_path / 'cache'}", "--config.data.max_gigabytes=1e-7"]
    assert main([*arguments, f"--workdir={tmp_path / 'refused'}", "--config.data.max_gigabytes=1e-7"]) == 2
    assert "or read each batch from disk with data.from_disk=True" in capsys.readouterr().err
    for name, more in [("memory", []), ("disk", cached)]:
        assert main([*arguments, f"--workdir={tmp_path / name}", *more]) == 0
    assert_same_run(tmp_path / "memory", tmp_path / "disk")
    capsys.readouterr()
    found = []
    for more in ([], ["--config.data.from_disk=False", "--config.data.cache=", "--config.data.max_gigabytes=8"]):
        run = f"--workdir={tmp_path / 'disk'}"
        output = tmp_path / f"{len(found)}.json"
        nll = ["--mode=evaluate", "--metric=nll", "--num_samples=4", "--device=cpu", f"--output={output}"]
        assert main([*nll, run, *more]) == 0
        found.append(json.loads(output.read_text()))
    assert found[0] == found[1]
    assert "held_out" in final_tensors(tmp_path / "disk")
    assert RunFolder(tmp_path / "disk").config.exists()

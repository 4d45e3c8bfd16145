"""Weights & Biases: metrics reach it, and whatever goes wrong there ends no run."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from scoresde import UsageError
from scoresde.app import tracking
from tests.runs import ROOT, TOY, assert_same_run, train_logged


class FakeWandb(types.ModuleType):
    """Stands in for wandb; what is in `broken` raises."""

    def __init__(self, *broken):
        super().__init__("wandb")
        self.broken = broken
        self.calls = []
        self.Settings = lambda **_: self._do("Settings")

    def _do(self, name, result=None):
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken\nsecond line")
        return result

    def init(self, **_):
        return self._do("init", types.SimpleNamespace(log=self._log, finish=lambda: self._do("finish")))

    def _log(self, metrics, step):
        self.logged = (metrics, step)
        self._do("log")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_metrics_go_to_wandb(tmp_path, monkeypatch, capsys, mode):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    with tracking.Tracker(mode, tmp_path, {}) as tracker:
        tracker.log({"step": 3, "loss": 0.5})
    assert fake.calls == ["Settings", "init", "log", "finish"]
    assert fake.logged == ({"step": 3, "loss": 0.5}, 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["Settings", "init", "log", "finish"])
def test_a_wandb_that_fails_is_said_once_and_left_alone(tmp_path, monkeypatch, capsys, broken):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb(broken))
    with tracking.Tracker("online", tmp_path, {}) as tracker:
        tracker.log({"step": 1, "loss": 0.5})
        tracker.log({"step": 2, "loss": 0.5})
    assert capsys.readouterr().err == f"wandb: going on without it ({broken} is broken)\n"
    assert fake.calls.count(broken) == 1


@pytest.mark.parametrize("wandb", [FakeWandb("init"), FakeWandb("log"), None], ids=["init", "log", "not installed"])
def test_a_run_survives_wandb(whole, tmp_path, monkeypatch, capsys, wandb):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train_logged(tmp_path, "--config.logging.wandb=online") == 0
    assert capsys.readouterr().err.count("wandb: going on without it") == 1
    assert_same_run(tmp_path, whole)


def test_a_mode_of_wandb_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"config\.logging\.wandb='on': need 'disabled', 'offline' or 'online'"):
        tracking.Tracker("on", tmp_path, {})


def test_wandb_is_not_imported_unless_it_is_asked_for(tmp_path):
    code = (
        "import sys\nfrom scoresde.app.cli import main\n"
        f"assert main({[*TOY, '--workdir=run']!r}) == 0\nassert 'wandb' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)

"""Signals between two steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scoresde import UsageError
from scoresde.app import train as train_module
from scoresde.app.cli import main
from scoresde.app.interrupt import Interruption
from tests.runs import ROOT, TOY


def test_the_first_signal_waits_and_the_second_does_not():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("turned_into", [RecursionError, UsageError, OSError])
def test_an_interrupt_that_a_library_turns_into_another_error_is_130_too(monkeypatch, capsys, turned_into):
    def stop(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise turned_into("half imported") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(train_module, "train", stop)
        assert main(["--mode", "train"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="sees what is imported in /proc")
@pytest.mark.parametrize("imported", ["libtorch", "multiarray", "sklearn"])
def test_an_interrupt_of_an_import_ends_without_a_traceback(tmp_path, imported):
    """A library that goes on without what was half imported fails later, and not by `KeyboardInterrupt`."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *TOY, f"--workdir={tmp_path}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and imported not in maps.read_text():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert b"Traceback" not in errors


def test_an_error_without_an_interrupt_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RecursionError("a bug")

    monkeypatch.setattr(train_module, "train", fail)
    with pytest.raises(RecursionError, match="a bug"):
        main(["--mode", "train"])


def test_a_keyboard_interrupt_elsewhere_is_130_too(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train", stop)
    assert main(["--mode", "train"]) == 130
    assert capsys.readouterr().err == "stopped\n"

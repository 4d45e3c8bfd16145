"""Signals between two steps."""

from __future__ import annotations

import os
import signal

import pytest

from scoresde.app import train as train_module
from scoresde.app.cli import main
from scoresde.app.interrupt import Interruption


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


def test_a_keyboard_interrupt_elsewhere_is_130_too(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "train", stop)
    assert main(["--mode", "train"]) == 130
    assert capsys.readouterr().err == "stopped\n"

"""Signals to end: between two steps and not within one, and without a traceback."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import final

# Ctrl-C, and what clusters send some minutes before they kill
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]


@final
class Interruption:
    """While entered, the first of `SIGNALS` to arrive only sets `signal`; a second one acts as usual.

    A signal that is ignored already, as `nohup` does with SIGHUP, stays so.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def __enter__(self) -> Interruption:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextlib.contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """While entered, Ctrl-C raises `KeyboardInterrupt`, unless it is ignored, and is noted in the list.

    A library that is interrupted while it is imported may turn that into another error.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    usual = before in (signal.default_int_handler, signal.SIG_DFL)
    takes = usual and threading.current_thread() is threading.main_thread()
    if takes:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if takes:
            signal.signal(signal.SIGINT, before)

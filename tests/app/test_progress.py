"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys

from scoresde.app import progress
from scoresde.app.progress import Progress


def test_progress_writes_plain_lines_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter([0.0, 2.0, 6.0, 6.0, 8.0, 9.0])  # start, no line, line (asked twice), no line, the last line
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("train", 10, initial=2) as shown:
        for count in (3, 5, 7):
            shown.update(count, f"loss {count}.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train 5/10 50%  loss 5.5  0.5 steps/s  10 s left",
        "train 7/10 70%  loss 7.5  0.6 steps/s  5 s left",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("train", 4) as shown:
        for count in range(1, 5):
            shown.update(count, f"loss {count}.5")
    err = capsys.readouterr().err
    assert "\r" in err
    assert re.search(r"train: 100%.*4/4 .*loss 4\.5", err)


def test_progress_that_is_not_shown_counts_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with Progress("train", 2, shown=False) as hidden:
            hidden.advance()
            hidden.advance()
        assert hidden.count == 2
    assert capsys.readouterr().err == ""

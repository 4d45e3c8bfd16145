"""Progress: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import final

SECONDS_BETWEEN_LINES = 5.0


@final
class Progress:
    """Counts from `initial` to `total`; used as a context manager. Where it is not `shown`, it is silent."""

    def __init__(self, label: str, total: int, initial: int = 0, unit: str = "steps", shown: bool = True) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.shown = shown
        self.count = self.initial = initial
        self.start = self.last_line = time.monotonic()
        self.note = ""
        self.bar = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=initial, desc=label, unit=unit, dynamic_ncols=True)

    def update(self, count: int, note: str | None = None) -> None:
        """Sets the count and, if given, what stands beside it."""
        self.note = note if note is not None else self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count - self.count)
        self.count = count
        if self.bar is None and self.shown and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def advance(self) -> None:
        """One more."""
        self.update(self.count + 1)

    def _line(self) -> None:
        self.last_line = time.monotonic()
        seconds = max(self.last_line - self.start, 1e-9)
        rate = (self.count - self.initial) / seconds
        left = (self.total - self.count) / rate if rate else float("inf")
        share = 100 * self.count / self.total
        print(
            f"{self.label} {self.count}/{self.total} {share:.0f}%  {self.note}  {rate:.1f} {self.unit}/s  "
            f"{left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown and self.count > self.initial:
            self._line()

"""What `--mode evaluate` measured: a table on the screen, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from scoresde._files import MARK, write_text
from scoresde.app.densities import Row
from scoresde.metrics.resampling import Estimate


class Measure(NamedTuple):
    """A line of the table: a measure of samples, and the same of other real samples, NaN if there are none."""

    name: str
    estimate: Estimate
    floor: float = math.nan

    def to_json(self) -> dict[str, float]:
        """The numbers, by the names of columns."""
        return {**self.estimate._asdict(), "floor": self.floor}


@final
class Table:
    """What was measured; it is written after each addition, so that nothing is lost if what follows fails.

    Args:
        record: what the numbers are of; whoever computes one adds to it.
        output: the file to write; None for a process that does not write.
    """

    def __init__(self, record: dict[str, Any], output: Path | None) -> None:
        self.record = record
        self._output = output
        self._rows: list[Row] = []
        self._measures: list[Measure] = []

    def add(self, rows: Sequence[Row] = (), measures: Sequence[Measure] = ()) -> None:
        """Adds lines."""
        self._rows += rows
        self._measures += measures
        results: dict[str, Any] = {row.name: {"value": row.value, "standard error": row.error} for row in self._rows}
        results |= {each.name: each.to_json() for each in self._measures}
        if self._output is not None:
            write_json(self._output, self.record | {"results": results})

    def show(self) -> None:
        """Prints the numbers."""
        if self._rows:
            print(f"{'':44}{'value':>12}{'standard error':>16}")
        for row in self._rows:
            error = "" if math.isnan(row.error) else f"{row.error:.2g}"
            print(f"{row.name:44}{row.value:>12.5g}{error:>16}")
        if self._measures:
            print(f"{'':44}{'value':>12}{'of infinitely many, 95 %':>33}{'floor':>11}")
        for name, found, floor in self._measures:
            many = f"{found.extrapolated:.4g} [{found.low:.4g}, {found.high:.4g}]"
            shown = "" if math.isnan(floor) else f"{floor:.4g}"
            print(f"{name:44}{found.value:>12.5g}{'' if math.isnan(found.low) else many:>33}{shown:>11}")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record; NaN becomes null."""
    write_text(path, json.dumps({"comment": MARK} | dict(record), indent=1).replace("NaN", "null"))

"""What pilot runs have found for a checkpoint, in a file beside it, so that each is made once."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from scoresde._files import write_text
from scoresde._json import parse_json
from scoresde.checkpoint import Checkpoint
from scoresde.errors import machine_error


def pilots_path(checkpoint: Path) -> Path:
    """The file of a checkpoint's pilot runs."""
    return checkpoint.with_suffix(".pilots.json")


def calibrated_path(checkpoint: Path) -> Path:
    """The file of a checkpoint's calibrated tables (`scoresde.app.fitted_tables`)."""
    return checkpoint.with_suffix(".calibrated.json")


@final
class PilotCache:
    """The findings of pilot runs for a checkpoint, by a name and the settings that they depend on.

    A file that is damaged, or belongs to other weights, counts as none. If it cannot be written, the findings are used
    and not kept, and a line says so.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = pilots_path(checkpoint.path)
        self._digest = checkpoint.digest
        self._found: dict[str, Any] = {}
        try:
            content = parse_json(self._path.read_text())
        except (OSError, ValueError):
            return
        known = isinstance(content, dict) and content.get("digest") == self._digest
        if known and isinstance(content.get("found"), dict):
            self._found = content["found"]

    def find(
        self,
        name: str,
        settings: Mapping[str, Any],
        search: Callable[[], Any],
        valid: Callable[[Any], bool],
        write: bool = True,
    ) -> Any:
        """What is known under a name and settings; if nothing valid is, the result of a search, which is then kept.

        Args:
            name: of what is found.
            settings: what it depends on, as JSON can hold it.
            search: gives what JSON can hold.
            valid: whether what is known can be what a search gave.
            write: whether to keep it; of several processes, one does.
        """
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        key = f"{name} {digest}"
        if key not in self._found or not valid(self._found[key]):
            self._found[key] = search()
            if write:
                self._write()
        return self._found[key]

    def _write(self) -> None:
        try:
            write_text(self._path, json.dumps({"digest": self._digest, "found": self._found}, indent=1))
        except OSError as error:
            print(f"a pilot run's findings are not kept: {machine_error(error)}", file=sys.stderr, flush=True)

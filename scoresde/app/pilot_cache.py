"""What pilot runs have found for a checkpoint, in a file beside it, so that each is made once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from scoresde._json import parse_json
from scoresde.checkpoint import Checkpoint


def pilots_path(checkpoint: Path) -> Path:
    """The file of a checkpoint's pilots."""
    return checkpoint.with_suffix(".pilots.json")


def calibrated_path(checkpoint: Path) -> Path:
    """The file of a checkpoint's calibrated tables (`scoresde.app.fitted_tables`)."""
    return checkpoint.with_suffix(".calibrated.json")


@final
class PilotCache:
    """The findings of pilot runs for a checkpoint, by a name and the settings that they depend on.

    A file that is damaged, or of other weights, counts as none; one that cannot be written is done without.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path, self._digest = pilots_path(checkpoint.path), checkpoint.description["digest"]
        self._found: dict[str, Any] = {}
        try:
            kept = parse_json(self._path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(kept, dict) and kept.get("digest") == self._digest and isinstance(kept.get("found"), dict):
            self._found = kept["found"]

    def find(
        self,
        name: str,
        settings: Mapping[str, Any],
        search: Callable[[], Any],
        valid: Callable[[Any], bool],
        write: bool = True,
    ) -> Any:
        """What is kept under a name and settings; where there is nothing valid, the result of a search, then kept.

        Args:
            name: of what is found.
            settings: what it depends on, as JSON can hold it.
            search: gives what JSON can hold.
            valid: whether what is kept can be what a search gave.
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
        temporary = self._path.with_name(f".{self._path.name}.partial")
        try:
            temporary.write_text(json.dumps({"digest": self._digest, "found": self._found}, indent=1))
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)

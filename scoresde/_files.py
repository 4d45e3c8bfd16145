"""Files that are written whole or not at all, and that know who wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from scoresde.errors import naming

MARK = "written by scoresde"  # in every result, so that no other file is written over
ENDS = 65536  # bytes at the beginning and the end of a file that are searched for the mark


def is_own(path: Path) -> bool:
    """Whether a file is a result of this program, which it may write over."""
    with naming(path), open(path, "rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, path.stat().st_size - ENDS))
        return MARK.encode() in head or MARK.encode() in file.read()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that `path` never holds half of it, even after a crash.

    Raises:
        OSError: if it cannot be written; names `path`. Nothing is left behind, and what was there stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)  # the rename survives a crash only once the folder is synced
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text in UTF-8."""
    write_bytes(path, text.encode())

"""Captions that lie with the images of a user.

Of a folder, the caption of NAME.png is the text in NAME.txt beside it. Else it is in a file metadata.jsonl, in the
image's folder or in one above it, as Hugging Face's `imagefolder` has it: each line is {"file_name": ..., "text": ...}
(or "caption"), with the path of the image from there. White space of all kinds counts as one blank.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoresde._json import parse_json
from scoresde.data.options import OWN, reading
from scoresde.errors import require

METADATA = "metadata.jsonl"
KEYS = ("text", "caption")
LONGEST = 2**16  # bytes of a text file


def plain(text: str | None) -> str:
    """A caption with single blanks; empty for none."""
    return " ".join((text or "").split())


def checked(captions: Sequence[str], source: str) -> tuple[str, ...]:
    """Captions of all images; says how many are missing.

    Raises:
        UsageError: if all are.
    """
    missing = sum(not text for text in captions)
    require(
        missing < len(captions),
        f"{source}: data.captions={OWN!r}, and no image has a caption; write NAME.txt beside NAME.png, {METADATA} "
        "with file_name and text, or a column 'text'",
    )
    if missing:
        warnings.warn(
            f"{source}: {missing} of {len(captions)} images have no caption; theirs is the empty text", stacklevel=2
        )
    return tuple(captions)


def beside(files: Sequence[Path], root: Path, source: str) -> tuple[str, ...]:
    """The captions of image files below a folder.

    Raises:
        UsageError: if there are none, or a file of captions cannot be read.
    """
    known: dict[Path, dict[str, str]] = {}
    captions = []
    for file in files:
        text = _text_file(file.with_suffix(".txt"), source)
        for folder in (file.parent, *file.parent.parents) if text is None else ():
            if not folder.is_relative_to(root):
                break
            if folder not in known:
                known[folder] = _metadata(folder, source)
            text = known[folder].get(os.path.normpath(file.relative_to(folder)))
            if text is not None:
                break
        captions.append(plain(text))
    return checked(captions, source)


def _text_file(path: Path, source: str) -> str | None:
    """The text in a file; None if there is no such file."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    require(size <= LONGEST, f"{source}: {str(path)!r} is no caption: {size:,} bytes, above {LONGEST:,}; remove it")
    with reading(repr(str(path)), "text in UTF-8"):
        return path.read_text("utf-8-sig")


def _metadata(folder: Path, source: str) -> dict[str, str]:
    """The captions in the metadata of a folder, by the paths of their images from there."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    found = {}
    with reading(repr(str(path)), "lines of JSON"), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            entry: Any = parse_json(line)
            text = next((entry[key] for key in KEYS if key in entry), None) if isinstance(entry, dict) else None
            require(
                isinstance(entry, dict)
                and isinstance(entry.get("file_name"), str)
                and (text is None or isinstance(text, str)),
                f"{source}: {str(path)!r}, line {number}: need file_name and text, both words",
            )
            if text is not None:
                found[os.path.normpath(entry["file_name"])] = text
    return found

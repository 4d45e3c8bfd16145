"""What a user chooses about data of their own, and how mistakes in reading it are told.

Image files differ in size, shape, colour and soundness; a network needs one shape. Nothing is guessed: files that agree
are taken as they are, files that do not agree are refused until a choice says what to do with them.

`fit` says how an image of h x w comes to H x W. With s_h = H/h and s_w = W/w,

- "crop" scales by max(s_h, s_w), so that the image covers the target, and cuts the centre;
- "pad" scales by min(s_h, s_w), so that the target holds the image, and surrounds it with black;
- "squash" scales each axis by its own factor, and so changes the proportions;
- "center" does not scale: it cuts the centre, or surrounds with black, each axis by itself.

Scaling is bicubic with a filter as wide as the pixels of the coarser image, so that it does not alias.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from scoresde.errors import UsageError, require, unknown_name

RESIZE_MODES = ("crop", "pad", "squash", "center")
LARGEST_SIDE = 2**14


@final
@dataclass(frozen=True)
class ReadOptions:
    """How to read data; the fields are those of `config.data`.

    Raises:
        UsageError: for a value that has no meaning.
    """

    image_size: tuple[int, ...] = (0,)
    fit: str = "crop"
    channels: int = 0
    class_conditional: bool = True
    labels_path: str = ""
    split: str = "train"
    max_unreadable: float = 0.01
    max_gigabytes: float = 8.0

    def __post_init__(self) -> None:
        size = self.image_size
        require(
            not self.resizes or (len(size) in (1, 2) and all(type(n) is int and 0 < n <= LARGEST_SIDE for n in size)),
            f"data.image_size={size}: need one number, or (height, width), of at most {LARGEST_SIDE}; 0 keeps the size",
        )
        if self.fit not in RESIZE_MODES:
            raise unknown_name("data.fit", self.fit, RESIZE_MODES)
        require(self.channels in (0, 1, 3), f"data.channels={self.channels}: need 1 (grey), 3 (colour) or 0 (as it is)")
        require(0 <= self.max_unreadable <= 1, f"data.max_unreadable={self.max_unreadable}: need a share, 0 to 1")
        require(self.max_gigabytes > 0, f"data.max_gigabytes={self.max_gigabytes}: need a number above 0")

    @property
    def resizes(self) -> bool:
        """Whether images are brought to one size."""
        return self.image_size not in ((), (0,))

    @property
    def height_width(self) -> tuple[int, int]:
        """The size that images are brought to."""
        return self.image_size[0], self.image_size[-1]

    def require_room(self, num_bytes: int, source: str) -> None:
        """Raises `UsageError` for data that is larger than the limit; called before any of it is unpacked."""
        require(
            num_bytes <= self.max_gigabytes * 1e9,
            f"{source}: takes {num_bytes / 1e9:.3g} GB of memory, and data.max_gigabytes={self.max_gigabytes:g}; "
            "raise that, or choose a smaller data.image_size",
        )


@contextmanager
def reading(source: str, kind: str) -> Iterator[None]:
    """Turns whatever a reader raises over a damaged file into one line.

    The readers of other libraries promise no kind of exception for damaged input: a fuzzer finds a dozen.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{source}: cannot be read as {kind} ({reason(error)})") from error


def reason(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].strip() else type(error).__name__


def optional_module(name: str, source: str) -> Any:
    """A module of the extra `[data]`.

    Raises:
        UsageError: where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UsageError(f"{source}: reading it needs {package}; pip install scoresde[data]") from error


def choose_split(known: list[str], choices: ReadOptions, source: str) -> str:
    """The split to read: the only one, or the one that is chosen."""
    if len(known) > 1 and choices.split not in known:
        raise unknown_name(f"data.split of {source}:", choices.split, known)
    return choices.split if len(known) > 1 else known[0]

"""Options for reading user data, and errors in reading it.

Image files differ in size, shape and colour; a network needs one shape. Nothing is guessed: files that agree are taken
as they are, and files that do not are refused until the options say what to do with them.

`resize_mode` is the way from an image of h x w to one of H x W. With s_h = H/h and s_w = W/w,

- "crop" scales by max(s_h, s_w), so that the image covers the target, and cuts out the centre;
- "pad" scales by min(s_h, s_w), so that the image fits into the target, and surrounds it with black;
- "squash" scales each axis by its own factor, and so changes the proportions;
- "center" does not scale: on each axis it cuts out the centre, or surrounds it with black.

`captions` says where the texts come from that a model of text is trained on: "" is none, "own" those that lie with the
images, "classes" are made from the names of the classes, and "digits" from the labels and what is measured of strokes.

Scaling is bicubic, with a filter as wide as the pixels of the coarser image to avoid aliasing.
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
OWN, CLASSES, DIGITS = "own", "classes", "digits"
CAPTIONS = (OWN, CLASSES, DIGITS)


@final
@dataclass(frozen=True)
class ReadOptions:
    """Options for reading data; the fields are those of `config.data`.

    Raises:
        UsageError: for an invalid value.
    """

    image_size: tuple[int, ...] = (0,)
    resize_mode: str = "crop"
    channels: int = 0
    class_conditional: bool = True
    labels_path: str = ""
    split: str = "train"
    max_unreadable: float = 0.01
    max_gigabytes: float = 8.0
    from_disk: bool = False
    cache: str = ""
    captions: str = ""

    def __post_init__(self) -> None:
        size = self.image_size
        require(
            not self.resizes or (len(size) in (1, 2) and all(type(n) is int and 0 < n <= LARGEST_SIDE for n in size)),
            f"data.image_size={size}: need one number, or (height, width), of at most {LARGEST_SIDE}; 0 keeps the size",
        )
        if self.resize_mode not in RESIZE_MODES:
            raise unknown_name("data.resize_mode", self.resize_mode, RESIZE_MODES)
        require(self.channels in (0, 1, 3), f"data.channels={self.channels}: need 1 (grey), 3 (colour) or 0 (as it is)")
        require(0 <= self.max_unreadable <= 1, f"data.max_unreadable={self.max_unreadable}: need a share, 0 to 1")
        require(self.max_gigabytes > 0, f"data.max_gigabytes={self.max_gigabytes}: need a number above 0")
        require(
            self.from_disk or not self.cache,
            f"data.cache={self.cache!r}: is for data that are read from disk; set data.from_disk=True, or leave it out",
        )
        if self.captions and self.captions not in CAPTIONS:
            raise unknown_name("data.captions", self.captions, CAPTIONS)
        require(
            self.class_conditional or self.captions in ("", OWN),
            f"data.captions={self.captions!r}: is made from labels; set data.class_conditional=True, which reads them",
        )

    @property
    def resizes(self) -> bool:
        """Whether images are brought to one size."""
        return self.image_size not in ((), (0,))

    @property
    def height_width(self) -> tuple[int, int]:
        """The size to which images are brought."""
        return self.image_size[0], self.image_size[-1]

    def require_room(self, num_bytes: int, source: str) -> None:
        """Raises `UsageError` for data that is larger than the limit; called before any of it is unpacked."""
        require(
            num_bytes <= self.max_gigabytes * 1e9,
            f"{source}: takes {num_bytes / 1e9:.3g} GB of memory, and data.max_gigabytes={self.max_gigabytes:g}; "
            "raise that, choose a smaller data.image_size, or read each batch from disk with data.from_disk=True",
        )


@contextmanager
def reading(source: str, kind: str) -> Iterator[None]:
    """Turns any exception that a reader raises for a damaged file into a `UsageError`, in one line.

    The readers of other libraries do not say which exceptions damaged input raises: a fuzzer finds a dozen.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{source}: cannot be read as {kind} ({reason(error)})") from error


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].strip() else type(error).__name__


def optional_module(name: str, source: str) -> Any:
    """A module of the extra `[data]`.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UsageError(f"{source}: reading it needs {package}; pip install 'scoresde[data]'") from error


def choose_split(known: list[str], options: ReadOptions, source: str) -> str:
    """The split to read: the only one, or else the one that is chosen."""
    if len(known) > 1 and options.split not in known:
        raise unknown_name(f"data.split of {source}:", options.split, known)
    return options.split if len(known) > 1 else known[0]

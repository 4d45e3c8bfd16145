"""Where commands write, locks on folders, and the names of a configuration's fields."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scoresde._files import is_own
from scoresde.errors import UsageError, require

# fields that say where the data lie and how they are held: a checksum says whether they are the same
PLACE = (
    "data.path",
    "data.max_gigabytes",
    "data.from_disk",
    "data.cache",
    "data.autoencoder",
    "data.text_encoder",
)


def make_folder(folder: Path, argument: str, value: Path) -> None:
    """Makes a folder for the sake of an argument of the command line.

    Raises:
        UsageError: if it cannot be written.
        OSError: if too many files are open.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # which is not due to the place
            raise
        raise UsageError(
            f"{argument}={str(value)!r}: cannot be written ({error.strerror}); choose another with --{argument}"
        ) from error


@contextlib.contextmanager
def held(folder: Path, said: str) -> Iterator[None]:
    """Holds a folder against other processes; the system frees it when this process ends, however it ends.

    Raises:
        UsageError: with the message `said`, if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(said) from error
        yield
    finally:
        os.close(descriptor)


def output_path(given: str | None, default: Path, beside: str = "", kinds: Sequence[str] = ()) -> Path:
    """The file that a command is to write: what `--output` names, or the default.

    A folder that is there, or a name that ends with a slash, is the folder of a file of the default's name. The folder
    of the file is made.

    Args:
        given: the value of `--output`.
        default: the file to write if there is none; a name without a suffix gets the default's.
        beside: the suffix of a file of the same name that is to be written as well.
        kinds: suffixes that the file can have; by default that of `default`.

    Raises:
        UsageError: for another kind of file, a place that cannot be written, or a file that another program wrote,
            which would be lost.
    """
    kinds = kinds or (default.suffix,)
    output = Path(os.path.expanduser(given or default))
    if given is not None and (given.endswith("/") or (output.suffix not in kinds and output.is_dir())):
        output = output / default.name
    output = output if output.suffix else output.with_suffix(default.suffix)
    require(output.suffix in kinds, f"output={str(output)!r}: need the name of a {' or '.join(kinds)} file")
    make_folder(output.parent, "output", output)
    check_free(output)
    if beside:
        check_free(output.with_suffix(beside))
    return output


def check_free(path: Path) -> None:
    """Raises `UsageError` if a result cannot be written to a path: a folder, or a file that another program wrote."""
    require(not path.is_dir(), f"output={str(path)!r}: is a folder; choose another with --output")
    require(
        not path.exists() or is_own(path),
        f"output={str(path)!r}: exists, and was not written by scoresde; choose another with --output",
    )


def flat(config: dict[str, Any], prefix: str = "", empty: bool = False) -> dict[str, Any]:
    """{"a": {"b": 1}, "c": {}} to {"a.b": 1}, or, with `empty`, to {"a.b": 1, "c": {}}."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        is_section = isinstance(value, dict) and (len(value) > 0 or not empty)
        fields |= flat(value, f"{prefix}{key}.", empty) if is_section else {f"{prefix}{key}": value}
    return fields

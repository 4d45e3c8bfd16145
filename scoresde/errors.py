"""The one error that stands for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A mistake of the caller: names the argument, the value and the remedy, in one line.

    The command line prints it without a traceback and exits with status 2; in a program it is a `ValueError`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def require(condition: bool, message: str) -> None:
    """Raises `UsageError(message)` unless the condition holds."""
    if not condition:
        raise UsageError(message)


def flag_error(error: Exception) -> UsageError:
    """What absl says of a flag, in one line."""
    return UsageError(f"{str(error).strip().splitlines()[0]}; --help shows every flag with its default")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")

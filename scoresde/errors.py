"""Errors for a user's mistake, or for a fault of the machine."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


class UsageError(ValueError):
    """A mistake of the caller. The message names the argument, the value and the remedy, in one line.

    The command line prints it without a traceback and exits with status 2; in a program it is a `ValueError`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def require(condition: bool, message: str) -> None:
    """Raises `UsageError(message)` unless the condition holds."""
    if not condition:
        raise UsageError(message)


def flag_error(error: Exception) -> UsageError:
    """An error that absl reports about a flag, in one line."""
    return UsageError(f"{str(error).strip().splitlines()[0]}; --help shows every flag with its default")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """While entered, an `OSError` names this file: a full disk names none, and a temporary name means nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, of the host or of a device."""
    said = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")  # torch's, and CUDA's
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in said))


def tried(error: BaseException) -> str:
    """How much memory was asked for, in brackets, if an error says so."""
    found = re.search(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ \w+)", str(error))
    return f" (tried to allocate {found[1]})" if found else ""


def cannot_compile(error: BaseException) -> bool:
    """Whether an error says that `torch.compile` failed. Its class is compared by name: to import it takes seconds."""
    classes = {cls.__name__ for cls in type(error).__mro__}
    said = ("torch.compile", "torch._functorch")  # of a second gradient, which compiled networks do not have
    return "TorchDynamoException" in classes or (isinstance(error, RuntimeError) and any(s in str(error) for s in said))


REMEDIES = {
    errno.ENOSPC: "make room on the disk; the same command then goes on",
    errno.EDQUOT: "make room within your quota; the same command then goes on",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f); the same command then goes on",
    errno.EMFILE: "raise the limit on open files (ulimit -n); the same command then goes on",
    errno.ENFILE: "close other programs; the same command then goes on",
    errno.EACCES: "ask for permission, or choose another place",
    errno.EPERM: "ask for permission, or choose another place",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EISDIR: "a folder has this name; remove it, or choose another name",
    errno.ENOTDIR: "a file stands where a folder is needed; remove it, or choose another place",
    errno.EEXIST: "remove it, or choose another name",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def machine_error(error: OSError) -> UsageError:
    """An error of the operating system, in one line: the path, the reason and the remedy."""
    path = f"{str(error.filename)!r}: " if error.filename is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "check the disk and the path")
    return UsageError(f"{path}{reason}; {remedy}")

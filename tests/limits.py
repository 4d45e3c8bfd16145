"""Limits of the machine, set for a part of a test."""

from __future__ import annotations

import contextlib
import os
import resource


@contextlib.contextmanager
def limited(kind, value):
    """While entered, a limit of this process (`resource.RLIMIT_*`) is `value`."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def few_open_files(more):
    """While entered, this process can have only so many more files open than it has."""
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(len(used) + more + 1) if number not in used]
    return limited(resource.RLIMIT_NOFILE, free[more])

"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from scoresde._files import write_bytes, write_text


def test_a_file_is_written_over_as_a_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "long before")
    write_text(path, "after")
    assert path.read_text() == "after"
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["half written", "not renamed"])
def test_a_write_that_fails_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def half(file):
        os.ftruncate(file, 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(source, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    monkeypatch.setattr(os, *(("fsync", half) if fails == "half written" else ("replace", refuse)))
    with pytest.raises(OSError, match="No space left") as error:
        write_text(path, "after")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]

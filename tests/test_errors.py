"""A mistake, or a fault of the machine, in one line."""

from __future__ import annotations

import errno
import os

import pytest

from scoresde.errors import REMEDIES, UsageError, machine_error, naming, require, unknown_name


def test_a_mistake_is_one_line_whatever_it_quotes():
    assert str(UsageError("two\nlines\r\nor three")) == "two lines or three"
    assert isinstance(UsageError(""), ValueError)


def test_what_is_required_holds_or_is_a_mistake():
    require(True, "fine")
    with pytest.raises(UsageError, match="not fine"):
        require(False, "not fine")


def test_an_unknown_name_comes_with_the_nearest_one_and_all():
    assert str(unknown_name("sde", "vpp", ["ve", "vp"])) == "unknown sde 'vpp': did you mean 'vp'? known are ve, vp"
    assert str(unknown_name("sde", "x", ["ve", "vp"])) == "unknown sde 'x': known are ve, vp"


def test_a_fault_of_the_machine_names_the_file_the_reason_and_the_remedy():
    for code, remedy in REMEDIES.items():
        found = str(machine_error(OSError(code, os.strerror(code), "folder/a.txt")))
        assert found == f"'folder/a.txt': {os.strerror(code)}; {remedy}"


def test_a_fault_without_a_number_or_a_file_is_one_line_too():
    assert str(machine_error(OSError("odd"))) == "odd; check the disk and the path"
    assert str(machine_error(OSError())) == "OSError; check the disk and the path"
    assert str(machine_error(OSError(errno.EIO, "Input/output error"))) == (
        "Input/output error; check the disk and the path"
    )


def test_a_fault_is_one_of_the_file_that_was_meant():
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full", ".a.txt.partial", None, "a.txt")):
        with pytest.raises(OSError, match="full") as found, naming("a.txt"):
            raise error
        assert (found.value.errno, found.value.filename, found.value.filename2) == (errno.ENOSPC, "a.txt", None)
    with pytest.raises(PermissionError), naming("a.txt"):
        raise OSError(errno.EACCES, "no")
    with pytest.raises(OSError, match="odd") as found, naming("a.txt"):
        raise OSError("odd")
    assert found.value.filename is None
    with pytest.raises(UsageError), naming("a.txt"):
        raise UsageError("a mistake")

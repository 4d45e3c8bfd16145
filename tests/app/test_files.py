"""Where commands write, and the names of fields."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from scoresde import UsageError
from scoresde.app.cli import main
from scoresde.app.files import flat, make_folder, output_path
from tests.mistakes import assert_mistake


def test_the_output_is_what_is_named_or_the_default(tmp_path):
    default = tmp_path / "samples" / "a.png"
    assert output_path(None, default) == default
    assert default.parent.is_dir()
    for given in ("made/b.png", "made/b"):
        assert output_path(str(tmp_path / given), default) == tmp_path / "made" / "b.png"
    assert not list((tmp_path / "made").iterdir())


def test_a_file_of_another_program_is_not_written_over(work, tmp_path, capsys):
    """Neither the output nor the file beside it; what this program wrote is."""
    commands = {
        "a.png": ["--mode=sample", "--sampler=ddim", "--num_samples=4", "--num_steps=5"],
        "a.npz": ["--mode=invert", "--num_samples=4", "--num_steps=6", "--output=a.png"],
        "b.json": ["--mode=evaluate", "--metric=nll", "--num_samples=4", "--num_steps=6"],
        "c.svg": ["--mode=visualize", "--what=schedule", "--num_steps=5"],
        "c.png": ["--mode=visualize", "--what=schedule", "--num_steps=5"],
        "c.gif": ["--mode=visualize", "--what=langevin", "--num_steps=5", "--num_samples=20"],
    }
    for name, command in commands.items():
        path = tmp_path / name
        output = path.with_suffix(".png") if name == "a.npz" else path
        run = ["--sde=vp"] if "visualize" in command[0] else ["--workdir=runs/toy"]
        arguments = [*[part for part in command if "--output" not in part], *run, "--device=cpu", f"--output={output}"]
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(b"a user's own")
        assert_mistake(
            capsys, arguments, rf"output='.*{name}': exists, and was not written by scoresde; choose another"
        )
        assert path.read_bytes() == b"a user's own"
        path.unlink()
        for _ in range(2):
            assert main(arguments) == 0, name


def test_an_output_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for given, message in {
        "a.jpg": r"a\.jpg': need the name of a \.png file",
        "folder.png": r"folder\.png': is a folder; choose another with --output",
        "file/a.png": r"file/a\.png': cannot be written \((Not a directory|File exists)\); choose another",
    }.items():
        with pytest.raises(UsageError, match=rf"output='.*{message}"):
            output_path(str(tmp_path / given), Path("a.png"))


def test_a_folder_is_tried_before_it_is_used(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UsageError, match=r"workdir='run': cannot be written \(Permission denied\)"):
        make_folder(tmp_path / "run" / "samples", "workdir", Path("run"))


def test_a_configuration_is_flat_by_dotted_names():
    assert flat({"a": {"b": 1, "c": {"d": (2, 3)}}, "e": "f"}) == {"a.b": 1, "a.c.d": (2, 3), "e": "f"}

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


def test_a_folder_takes_a_file_of_the_default_s_name(tmp_path, monkeypatch):
    """One that ends with a slash is made; one that is there needs no slash, unless it could be a file's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "v1.2").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "odd.png").mkdir()
    default = Path("samples/pc.png")
    for given, path in {
        "new/": "new/pc.png",
        "deep/new/": "deep/new/pc.png",
        "there": "there/pc.png",
        "there/": "there/pc.png",
        "v1.2": "v1.2/pc.png",
        "odd.png/": "odd.png/pc.png",
        ".": "pc.png",
        "there/..": "there/../pc.png",
        "~": f"{tmp_path}/home/pc.png",
        f"{tmp_path}/there": f"{tmp_path}/there/pc.png",
    }.items():
        if given == "~":
            (tmp_path / "home").mkdir()
        assert output_path(given, default) == Path(path), given
        assert Path(path).parent.is_dir(), given
    assert output_path("there", Path("a.png"), kinds=(".png", ".svg", ".gif")) == Path("there/a.png")
    assert output_path("b.gif", Path("a.png"), kinds=(".png", ".svg", ".gif")) == Path("b.gif")
    (tmp_path / "there" / "pc.png").write_bytes(b"a user's own")
    with pytest.raises(UsageError, match=r"output='there/pc\.png': exists, and was not written by scoresde"):
        output_path("there", default)
    with pytest.raises(UsageError, match=r"output='~nobody-of-this-name/pc\.jpg': need the name of a \.png file"):
        output_path("~nobody-of-this-name/pc.jpg", default)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--mode=sample", "--sampler=ddim", "--num_samples=4", "--num_steps=5"], ["ddim-seed0.npz", "ddim-seed0.png"]),
        (["--mode=invert", "--num_samples=4", "--num_steps=6"], ["invert.npz", "invert.png"]),
        (["--mode=interpolate", "--num_samples=2", "--num_steps=6"], ["interpolate.npz", "interpolate.png"]),
        (["--mode=evaluate", "--metric=nll", "--num_samples=4", "--num_steps=6"], ["evaluate.json"]),
        (["--mode=visualize", "--what=schedule", "--num_steps=5"], ["schedule.png"]),
    ],
    ids=lambda part: part[0],
)
def test_every_command_writes_into_a_folder_that_is_named(work, tmp_path, arguments, names):
    for folder in (f"{tmp_path}/new/", f"{tmp_path}/new"):
        assert main([*arguments, "--workdir=runs/toy", "--device=cpu", f"--output={folder}"]) == 0
        assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*names, "new"])


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

"""What the machine refuses, a full disk above all: one line and status 2, nothing half written, and nothing lost."""

from __future__ import annotations

import builtins
import errno
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from samplers.fitted.calibrate import Calibration
from scoresde.app import calibrate as calibrate_module
from scoresde.app.cli import main
from scoresde.app.pilot_cache import calibrated_path, pilots_path
from scoresde.app.run_folder import RunFolder
from scoresde.errors import REMEDIES
from tests.mistakes import assert_mistake
from tests.runs import SMALL_MLP, TINY, assert_same_run, contents, newest, train_logged

CODES = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
TOY = ["--workdir=runs/toy", "--device=cpu"]
COMMANDS = {  # quick ones, that write into `made`
    "train": [*TINY, *SMALL_MLP, "--workdir=made"],
    "sample": [*TOY, "--num_samples=4", "--num_steps=5", "--sampler=ddim", "--output=made/a.png"],
    "compare": [*TOY, "--num_samples=10", "--output=made/a.png"],
    "evaluate": [*TOY, "--num_samples=4", "--num_steps=6", "--metric=nll", "--output=made/a.json"],
    "invert": [*TOY, "--num_samples=4", "--num_steps=6", "--output=made/a.png"],
    "interpolate": [*TOY, "--num_samples=2", "--num_steps=6", "--output=made/a.png"],
    "visualize": ["--what=schedule", "--sde=vp", "--num_steps=5", "--output=made/a.png"],
}
FIGURES = {"compare", "visualize"}
pytestmark = pytest.mark.usefixtures("fits")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A comparison at few numbers of evaluations, by a short reference."""
    for constant, value in (("COUNTS", (5, 6)), ("REFERENCE", 32)):
        monkeypatch.setattr(f"scoresde.app.compare.{constant}", value)


@pytest.fixture
def made(work):
    """The folder that the commands write into; it is not there before."""
    yield work / "made"
    shutil.rmtree(work / "made", ignore_errors=True)


def fault(code, named=None):
    return OSError(code, os.strerror(code), *([] if named is None else [str(named)]))


def refuse(code):
    """A function that the machine refuses, as it refuses those that are given a path."""

    def refused(path, *_, **__):
        raise fault(code, path)

    return refused


def write_half(code):
    """Stands in for os.fsync; the disk is full halfway, and does not say for whose file."""

    def half(file):
        os.ftruncate(file, os.fstat(file).st_size // 2)
        raise fault(code)

    return half


def assert_refused(capsys, mode, code):
    """The command ends with status 2, after what it has to say in one line."""
    capsys.readouterr()
    assert main([f"--mode={mode}", *COMMANDS[mode]]) == 2, (mode, code)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert err.count("error: ") == 1, err
    assert re.fullmatch(rf"error: .*made.*{re.escape(os.strerror(code))}.*", last), last
    return last


@pytest.mark.parametrize("mode", COMMANDS)
def test_a_write_that_fails_halfway_names_the_file_and_leaves_nothing(made, monkeypatch, capsys, mode):
    for code in CODES[:1] if mode in FIGURES else CODES:  # a figure takes seconds to draw
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", write_half(code))
            said = assert_refused(capsys, mode, code)
        assert ".partial" not in said
        assert said.endswith(f": {os.strerror(code)}; {REMEDIES[code]}"), said
        assert not [path for path in made.rglob("*") if path.is_file()], mode
    assert main([f"--mode={mode}", *COMMANDS[mode]]) == 0


@pytest.mark.parametrize("mode", sorted(COMMANDS.keys() - FIGURES))
def test_a_file_that_cannot_be_renamed_is_named(made, monkeypatch, capsys, mode):
    for code in CODES:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse(code))
            said = assert_refused(capsys, mode, code)
        assert ".partial" not in said
        assert not [path for path in made.rglob("*") if path.is_file()], mode


@pytest.mark.parametrize("mode", COMMANDS)
def test_a_folder_that_cannot_be_made_or_written_is_named_first(made, monkeypatch, capsys, mode):
    argument = "workdir" if mode == "train" else "output"
    for code in CODES:
        for function in ("mkdir", "touch"):
            with monkeypatch.context() as patch:
                patch.setattr(Path, function, refuse(code))
                arguments = [f"--mode={mode}", *COMMANDS[mode]]
                reason = re.escape(os.strerror(code))
                message = rf"{argument}='made.*': cannot be written \({reason}\); choose another with --{argument}"
                assert_mistake(capsys, arguments, message)


def test_calibrated_tables_that_cannot_be_written_are_named(work, monkeypatch, capsys):
    def calibrated(model, sampler, *_, **__):
        return Calibration(sampler, 0.2, 0.1)

    monkeypatch.setattr(calibrate_module, "calibrated_table", calibrated)
    pilots_path(newest("toy")).unlink(missing_ok=True)
    monkeypatch.setattr(os, "fsync", write_half(errno.ENOSPC))
    assert main(["--mode=calibrate", *TOY, "--num_samples=64", "--num_steps=5"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"error: '.*calibrated\.json': No space left on device; make room.*; or copy the checkpoint to .*", last
    )
    assert not calibrated_path(newest("toy")).exists()
    assert not pilots_path(newest("toy")).exists()  # what a pilot found is used, and not kept


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_run_on_a_full_disk_goes_on_once_there_is_room(whole, tmp_path, monkeypatch, capsys, fails):
    """The disk is full at the second checkpoint of three."""
    folder = tmp_path / "run"
    path = RunFolder(folder).checkpoint_path(14)
    fsync, replace, opened = os.fsync, os.replace, builtins.open

    def full_fsync(descriptor):
        if path.name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise fault(errno.ENOSPC)
        fsync(descriptor)

    def full_replace(source, target):
        if Path(target) == path:
            raise fault(errno.ENOSPC, source)
        replace(source, target)

    def full_open(file, mode="r", *arguments, **options):
        if mode == "wb" and path.name in str(file):
            raise fault(errno.ENOSPC, file)
        return opened(file, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        place, function = {
            "write": ((builtins, "open"), full_open),
            "fsync": ((os, "fsync"), full_fsync),
            "replace": ((os, "replace"), full_replace),
        }[fails]
        patch.setattr(*place, function)
        assert train_logged(folder) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last == f"error: {str(path)!r}: No space left on device; make room on the disk; the same command then goes on"
    )
    assert RunFolder(folder).newest_checkpoint().step == (14 if path.exists() else 7)
    assert not list(folder.rglob(".*"))
    assert train_logged(folder) == 0
    assert_same_run(folder, whole)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="limits of POSIX")
def test_a_real_limit_on_the_size_of_files_is_named(whole, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # bytes: enough for texts alone
    try:
        assert train_logged(tmp_path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path = RunFolder(tmp_path).samples / "training-step-000000005.png"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {str(path)!r}: File too large; raise the limit on file sizes (ulimit -f)")
    assert not list(RunFolder(tmp_path).samples.iterdir())
    assert train_logged(tmp_path) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "timings.jsonl"])
def test_a_folder_in_the_place_of_a_run_s_file_is_named(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert train_logged(tmp_path) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {str(tmp_path / name)!r}: Is a directory; a folder has this name; remove it")
    (tmp_path / name).rmdir()
    assert train_logged(tmp_path) == 0


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, capsys):
    (tmp_path / "samples").touch()
    assert train_logged(tmp_path) == 2
    assert f"workdir={str(tmp_path)!r}: cannot be written" in capsys.readouterr().err


def test_a_checkpoint_that_may_not_be_opened_counts_as_sound(whole, tmp_path, monkeypatch, capsys):
    """It is not damaged, and so not set aside; nothing is begun anew or written over."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = RunFolder(folder).all_checkpoints()[-1]
    opened = builtins.open

    def locked(file, *arguments, **options):
        if file == last:
            raise fault(errno.EACCES, file)
        return opened(file, *arguments, **options)

    before = contents(folder)
    for arguments in (
        ["--mode=sample", f"--workdir={folder}", "--num_samples=4", "--num_steps=5", "--device=cpu"],
        ["--mode=sample", f"--checkpoint={last}", "--num_samples=4", "--num_steps=5", "--device=cpu"],
    ):
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", locked)
            assert_mistake(capsys, arguments, r"step-000000020\.safetensors': Permission denied; ask for permission")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", locked)
        assert train_logged(folder, "--config.training.num_steps=25") == 2
    assert "Permission denied" in capsys.readouterr().err
    assert contents(folder) == before


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        [*TINY, f"--workdir={LONG}"],
        [*TINY, f"--config={LONG}.json"],
        [*TINY, f"--config={LONG}.py"],
        [*TINY, f"--config.data.path={LONG}.npz", "--workdir=made"],
        ["--mode=sample", f"--workdir={LONG}"],
        ["--mode=sample", f"--checkpoint={LONG}"],
        ["--mode=sample", *TOY, f"--output={LONG}"],
        ["--mode=evaluate", *TOY, f"--output={LONG}.json"],
        ["--mode=invert", *TOY, f"--input={LONG}"],
        ["--mode=visualize", "--what=schedule", f"--output={LONG}.png"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG").split()[0] + arguments[-1].split("=")[0],
)
def test_a_name_that_is_too_long_is_named(made, capsys, arguments):
    assert_mistake(capsys, arguments, rf"{LONG}.*File name too long")


def test_what_lies_beside_a_checkpoint_may_be_a_folder(work, capsys):
    """Then what a pilot found is not kept, and calibrated tables are named."""
    sample = ["--mode=sample", *TOY, "--num_samples=4", "--num_steps=5", "--sampler=auto", "--output=made/a.png"]
    pilots, calibrated = pilots_path(newest("toy")), calibrated_path(newest("toy"))
    pilots.unlink(missing_ok=True)
    pilots.mkdir()
    try:
        assert main(sample) == 0
        calibrated.mkdir()
        assert main(sample) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert re.search(r"calibrated\.json: cannot be read .*Is a directory.*remove it, or run --mode calibrate", last)
    finally:
        pilots.rmdir()
        calibrated.rmdir()
        shutil.rmtree("made")


def test_numbers_are_not_written_where_a_folder_stands(made, capsys):
    (made / "a.npz").mkdir(parents=True)
    for mode in ("sample", "invert", "interpolate"):
        assert main([f"--mode={mode}", *COMMANDS[mode]]) == 2
        assert re.search(r"made/a\.npz'.*(is a folder|Is a directory)", capsys.readouterr().err.splitlines()[-1])

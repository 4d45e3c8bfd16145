"""Every fault of the machine at every write of the product, as a table.

Rows are what is written (`WRITES`), columns what the machine answers (`CODES`):

    a checkpoint, config.json, metrics.jsonl, timings.jsonl, the log that a continued run cuts, a picture on the way
    shards of samples, the picture and the numbers of samples
    the report of evaluate, figures (.png, .svg), animations (.gif), the picture and the numbers of compare
    the pictures and the numbers of invert and of interpolate
    calibrated tables, and the cache of pilot runs

    no space, no quota, too large a file, too many open files, a folder in its place, no permission, a read-only disk

In each cell the file cannot be opened, or is full halfway, or cannot be renamed, in turn. The command ends with status
2 and one line that gives the path, the reason and the remedy, and leaves nothing half written. After all faults of a
row, one upon the other, the same command goes on, and its results are those of a command that met none. The cache alone
is no result: what a pilot run found is used, the command succeeds, and one line says that it is not kept.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from samplers.fitted.calibrate import Calibration
from scoresde import plots
from scoresde.app import calibrate as calibrate_module
from scoresde.app import visualize
from scoresde.app.cli import main
from scoresde.app.pilot_cache import calibrated_path, pilots_path
from scoresde.app.run_folder import RunFolder
from scoresde.errors import REMEDIES
from tests.limits import limited
from tests.runs import LOGGED, assert_same_run, contents, newest, train_logged

CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.EISDIR, errno.EACCES, errno.EROFS)
POINTS = ("open", "write", "rename")
TOY = ["--workdir=runs/toy", "--device=cpu"]
TRAIN = [*LOGGED, "--workdir=made"]
SAMPLE = [
    *("--mode=sample", *TOY, "--num_samples=6", "--num_steps=5", "--sampler=ddim", "--config.sampling.batch_size=2"),
    "--output=made/a.png",
]
COMPARE = ["--mode=compare", *TOY, "--num_samples=10", "--output=made/a.png"]
INVERT = ["--mode=invert", *TOY, "--num_samples=4", "--num_steps=6", "--output=made/a.png"]
INTERPOLATE = ["--mode=interpolate", *TOY, "--num_samples=2", "--num_steps=6", "--output=made/a.png"]
VISUALIZE = ["--mode=visualize", "--what=langevin", "--sde=vp"]
WRITES = {  # what is written: the command, and the file's name
    "checkpoint": (TRAIN, r"step-000000014\.safetensors"),
    "configuration": (TRAIN, r"config\.json"),
    "metrics": (TRAIN, r"metrics\.jsonl"),
    "timings": (TRAIN, r"timings\.jsonl"),
    "picture on the way": (TRAIN, r"training-step-000000005\.png"),
    "picture at the end": (TRAIN, r"training-step-000000020\.png"),
    "shard": (SAMPLE, r"000000000002\.npz"),
    "picture of samples": (SAMPLE, r"a\.png"),
    "numbers of samples": (SAMPLE, r"a\.npz"),
    "report": (["--mode=evaluate", *TOY, "--num_steps=6", "--metric=nll", "--output=made/a.json"], r"a\.json"),
    "figure": ([*VISUALIZE, "--output=made/a.png"], r"a\.png"),
    "drawing": ([*VISUALIZE, "--output=made/a.svg"], r"a\.svg"),
    "animation": ([*VISUALIZE, "--output=made/a.gif"], r"a\.gif"),
    "picture of compare": (COMPARE, r"a\.png"),
    "numbers of compare": (COMPARE, r"a\.json"),
    "picture of invert": (INVERT, r"a\.png"),
    "numbers of invert": (INVERT, r"a\.npz"),
    "picture of interpolate": (INTERPOLATE, r"a\.png"),
    "numbers of interpolate": (INTERPOLATE, r"a\.npz"),
    "calibrated tables": (["--mode=calibrate", *TOY, "--num_samples=64", "--num_steps=5"], r".*\.calibrated\.json"),
}
APPENDED = {"metrics", "timings"}
pytestmark = pytest.mark.usefixtures("fits")


@dataclass
class Half:
    """A file that is opened to add to it; the disk is full halfway."""

    file: object
    code: int

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, text):
        self.file.write(text[: len(text) // 2])
        raise OSError(self.code, os.strerror(self.code))


def inject(patch, code, point, name):
    """Lets the machine refuse the writing of files of a name, at one of `POINTS`."""
    opened, fsync, replace = builtins.open, os.fsync, os.replace

    def hits(path):
        return re.fullmatch(name, re.sub(r"^\.(.*)\.partial$", r"\1", Path(path).name))

    def faulty_open(file, mode="r", *arguments, **options):
        if isinstance(file, int) or mode[0] not in "wax" or not hits(file):
            return opened(file, mode, *arguments, **options)
        if point == "open":
            raise OSError(code, os.strerror(code), str(file))
        made = opened(file, mode, *arguments, **options)
        return Half(made, code) if mode[0] == "a" else made

    def faulty_fsync(descriptor):
        if point == "write" and hits(os.readlink(f"/proc/self/fd/{descriptor}")):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    def faulty_replace(source, target):
        if point == "rename" and hits(target):
            raise OSError(code, os.strerror(code), str(source), None, str(target))
        replace(source, target)

    patch.setattr(builtins, "open", faulty_open)
    patch.setattr(os, "fsync", faulty_fsync)
    patch.setattr(os, "replace", faulty_replace)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What takes long is drawn and fitted as little as can be: it is the writing that counts."""
    for constant, value in (("COUNTS", (5, 6)), ("REFERENCE", 32)):
        monkeypatch.setattr(f"scoresde.app.compare.{constant}", value)
    dot = Image.new("L", (5, 4))
    monkeypatch.setattr(plots, "error_curves", lambda *_: dot)
    figures = visualize.FIGURES
    line = plots.style.new_figure(1, 1)
    monkeypatch.setitem(
        figures, "langevin", figures["langevin"]._replace(draw=lambda *_: line, frames=lambda *_: [dot] * 2)
    )
    monkeypatch.setattr(calibrate_module, "calibrated_table", lambda _, fitted, *__, **___: Calibration(fitted, 2, 1))
    monkeypatch.setattr(calibrate_module, "_reference", lambda *_: None)


@pytest.fixture
def made(work):
    """The folder that the commands write into; it is not there before, nor are tables beside the checkpoint."""
    yield work / "made"
    shutil.rmtree(work / "made", ignore_errors=True)
    for path in (calibrated_path(newest("toy")), pilots_path(newest("toy"))):
        path.unlink(missing_ok=True)


def assert_named(capsys, name, code):
    """What was said last is one line with a path, the reason and the remedy."""
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert "Traceback" not in err
    assert err.count("error: ") == 1, err
    expected = rf"error: '[^']*{name}': {re.escape(os.strerror(code))}; {re.escape(REMEDIES[code])}.*"
    assert re.fullmatch(expected, last), last


@pytest.mark.parametrize("what", WRITES)
def test_a_fault_is_named_nothing_is_lost_and_the_command_goes_on(whole, made, monkeypatch, capsys, what):
    command, name = WRITES[what]
    for k, code in enumerate(CODES):
        point = POINTS[k % (2 if what in APPENDED else 3)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            inject(patch, code, point, name)
            assert main(command) == 2, (what, code, point)
        assert_named(capsys, name, code)
        assert not list(Path().rglob(".*.partial")), (what, code, point)
    assert main(command) == 0
    if command is TRAIN:
        assert_same_run(made, whole)
        for picture in RunFolder(whole).samples.iterdir():
            assert (RunFolder(made).samples / picture.name).read_bytes() == picture.read_bytes()
    elif what != "calibrated tables":
        after = {path.name: content for path, content in contents(made).items()}
        shutil.rmtree(made)
        assert main(command) == 0
        again = {path.name: content for path, content in contents(made).items()}
        assert after.keys() == again.keys()
        assert all(after[file] == again[file] for file in after if command is not COMPARE)  # which measures times


def test_what_was_drawn_before_a_fault_is_not_drawn_again(made, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        inject(patch, errno.EDQUOT, "write", r"000000000004\.npz")
        assert main(SAMPLE) == 2
    assert main(SAMPLE) == 0
    assert "going on: 2 of 3 shards are there" in capsys.readouterr().out


def test_a_log_that_a_continued_run_cannot_cut_is_as_it_was(whole, made, monkeypatch, capsys):
    for name in ("metrics", "timings"):
        shutil.copytree(whole, made)
        RunFolder(made).all_checkpoints()[-1].unlink()
        before = contents(made)
        for k, code in enumerate(CODES):
            capsys.readouterr()
            with monkeypatch.context() as patch:
                inject(patch, code, ("write", "rename")[k % 2], rf"{name}\.jsonl")
                assert train_logged(made) == 2
            assert_named(capsys, rf"{name}\.jsonl", code)
            assert name == "timings" or contents(made) == before
        assert train_logged(made) == 0
        assert_same_run(made, whole)
        shutil.rmtree(made)


@pytest.mark.parametrize("code", CODES)
def test_what_a_pilot_found_is_used_and_a_line_says_that_it_is_not_kept(made, monkeypatch, capsys, code):
    command = [*SAMPLE[:-1], "--sampler=auto", "--output=made/a.png"]
    with monkeypatch.context() as patch:
        inject(patch, code, POINTS[code % 3], r".*\.pilots\.json")
        assert main(command) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "pilots.json" in line]
    assert len(lines) == 1
    assert re.fullmatch(rf"a pilot run's findings are not kept: '.*pilots\.json': {os.strerror(code)}; .+", lines[0])
    assert not pilots_path(newest("toy")).exists()


@pytest.mark.parametrize("what", [what for what, (command, _) in WRITES.items() if command is not TRAIN])
def test_a_real_limit_on_the_size_of_files_is_named(made, capsys, what):
    """Of `ulimit -f`, at whichever file of the command is the first; training has a test of its own."""
    command, _ = WRITES[what]
    Path("runs/toy/checkpoints").joinpath("made").mkdir(exist_ok=True)
    with limited(resource.RLIMIT_FSIZE, 30):
        assert main(command) == 2
    assert_named(capsys, r"[\w.-]+", errno.EFBIG)
    assert not list(Path().rglob(".*.partial"))
    assert main(command) == 0


@pytest.mark.parametrize("what", [what for what in WRITES if what not in ("checkpoint", "shard")])
def test_a_real_folder_in_the_place_of_a_file_is_named(made, capsys, what):
    command, name = WRITES[what]
    plain = name.replace("\\", "")
    place = calibrated_path(newest("toy")) if what == "calibrated tables" else made / plain
    place = RunFolder(made).samples / plain if what.startswith("picture ") and command is TRAIN else place
    place.mkdir(parents=True)
    assert main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"error: .*{name}'.*([Ii]s a (folder|directory)).*", last), last
    assert re.search("choose another|remove it", last), last
    place.rmdir()
    assert main(command) == 0

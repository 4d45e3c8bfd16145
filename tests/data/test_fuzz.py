"""Damaged files of every format: one line of `UsageError` or data, never another exception, never a hang.

Damage is what disks, transfers and attackers do: bytes changed, cut off, repeated, or put in, anywhere in a sound file.
"""

import gzip
import importlib.util
import io
import struct
import tempfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scoresde import UsageError
from scoresde.data import ArrayData, ReadOptions, load

VALUES = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
CHOICES = ReadOptions(max_unreadable=1.0, image_size=(8,), channels=3, max_gigabytes=0.05)
TABLES = ("x.parquet", "saved/data.arrow")


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def image(kind, **options):
    return written(lambda file: Image.fromarray(np.stack([VALUES[0]] * 3, 2)).save(file, kind, **options))


def arrow_stream(table):
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def sound_files():
    idx = struct.pack(">HBBIII", 0, 8, 3, 6, 8, 8) + VALUES.tobytes()
    files = {
        "x.npy": written(lambda f: np.save(f, VALUES)),
        "x.npz": written(lambda f: np.savez(f, x=VALUES, labels=np.arange(6))),
        "packed.npz": written(lambda f: np.savez_compressed(f, x=VALUES // 64, labels=np.arange(6))),
        "x.idx": idx,
        "x.idx.gz": gzip.compress(idx, mtime=0),
    }
    files |= {f"images/x.{kind}": image(kind) for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm")}
    exif = Image.Exif()
    exif[0x0112] = 6
    files["images/turned.jpeg"] = image("jpeg", exif=exif)
    files["images/packed.tiff"] = image("tiff", compression="tiff_lzw")
    if importlib.util.find_spec("pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"image": [{"bytes": image("png"), "path": "x"}] * 3, "label": [0, 1, 1]})
        files["x.parquet"] = written(lambda f: pq.write_table(table, f))
        files["saved/data.arrow"] = arrow_stream(table)
    return files


FILES = sound_files()


def damaged(sound):
    """Up to four injuries of a file."""
    place = st.integers(0, len(sound))
    injury = st.one_of(
        st.tuples(st.just("change"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("cut"), place, st.just(b"")),
        st.tuples(st.just("repeat"), place, st.just(b"")),
        st.tuples(
            st.just("fill"), place, st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
        ),
    )

    def apply(injuries):
        content = sound
        for kind, at, new in injuries:
            rest = {"insert": content[at:], "cut": b"", "repeat": content[at // 2 :]}
            content = content[:at] + new + rest.get(kind, content[at + len(new) :])
        return content

    return st.one_of(st.lists(injury, min_size=1, max_size=4).map(apply), st.binary(max_size=64))


def check(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    whole = path if path.parent == folder else path.parent
    if name.startswith("saved"):
        (path.parent / "state.json").write_text("{}")
    answers = [answer(whole, CHOICES)]
    with tempfile.TemporaryDirectory() as cache:
        answers.append(answer(whole, replace(CHOICES, from_disk=True, cache=cache)))
        if all(isinstance(one, ArrayData) for one in answers):
            assert torch.equal(answers[0].values, answers[1].values[:])


def answer(path, options):
    """Data, or the line of an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = load(path=str(path), options=options)
        except UsageError as error:
            line = str(error)
            assert len(line.splitlines()) == 1
            line.encode()  # can be printed
            return line
    assert isinstance(found, ArrayData)
    return found


def fuzz(folder, name, num_examples):
    @settings(
        max_examples=num_examples,
        deadline=20_000,  # of one file, in milliseconds: a hang, not a busy machine
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(FILES[name]))
    def run(content):
        check(folder, name, content)

    run()


@pytest.mark.parametrize("name", FILES)
def test_the_sound_file_is_read(tmp_path, name):
    check(tmp_path, name, FILES[name])
    options = ReadOptions(image_size=(8,), channels=3)
    whole = tmp_path / name.split("/")[0]  # the file, or the folder that it lies in
    assert load(path=str(whole), options=options).shape == (3, 8, 8)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_answered(tmp_path, name):
    fuzz(tmp_path, name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files_are_answered(tmp_path, name):
    fuzz(tmp_path, name, 1000)

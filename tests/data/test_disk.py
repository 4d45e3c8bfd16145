"""Data read from disk: the same as in memory, to the last bit, in a small part of the memory."""

import errno
import gzip
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.codec import Scaling
from scoresde.condition import parts
from scoresde.data import ReadOptions, disk, folders, load
from scoresde.data.file_array import FileArray
from scoresde.data.info import DataInfo, fingerprint
from scoresde.data.stores import open_array
from tests.data.samples import idx, noise, png, save

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
ARRAYS = {
    "images": RANDOM.integers(0, 256, (50, 3, 4, 5), dtype=np.uint8),
    "grey images": RANDOM.integers(0, 256, (50, 4, 5), dtype=np.uint8),
    "dark images": RANDOM.integers(0, 9, (50, 1, 4, 5), dtype=np.uint8),
    "vectors": RANDOM.normal(size=(5000, 3)).astype(np.float32) * [1, 10, 100],
    "singles": RANDOM.normal(size=(400, 7)).astype(np.float32),
    "halves": RANDOM.normal(size=(400, 7)).astype(np.float16),
    "big-endian": RANDOM.normal(size=(400, 7)).astype(">f4"),
    "times, which only float64 resolves": 1.7e9 + RANDOM.normal(size=(400, 2)),
    "counts": RANDOM.integers(0, 70_000, (400, 2)),
    "unsigned counts": RANDOM.integers(0, 60_000, (400, 2), dtype=np.uint16),
    "truth values": RANDOM.random((400, 6)) < 0.3,
    "series": RANDOM.normal(size=(30, 2, 9)).astype(np.float32),
    "volumes": RANDOM.normal(size=(30, 1, 3, 4, 5)).astype(np.float32),
}


def assert_same(disk_data, memory_data):
    """Values, conditions and everything that is computed of them, bit for bit."""
    assert disk_data.values.dtype == memory_data.values.dtype
    assert tuple(disk_data.values.shape) == tuple(memory_data.values.shape)
    assert torch.equal(disk_data.values[:], memory_data.values)
    assert (disk_data.codec, disk_data.class_names) == (memory_data.codec, memory_data.class_names)
    for (_, one), (_, other) in zip(parts(disk_data.cond), parts(memory_data.cond), strict=True):
        assert torch.equal(one, other)
    index = torch.tensor([7, 8, 9, 2, 2, 0, len(memory_data) - 1]) % len(memory_data)
    for one, other in zip(disk_data.batch(index), memory_data.batch(index), strict=True):
        assert one is other is None or torch.equal(one, other)
    for one, other in zip(disk_data.split(0.25), memory_data.split(0.25), strict=True):
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.values[:], other.values)
        assert torch.equal(one.values[3:5], other.values[3:5])
        assert (one.rms(), one.std(), one.ends()) == (other.rms(), other.std(), other.ends())
        assert fingerprint(one) == fingerprint(other)
    assert DataInfo.of(*disk_data.split(0.25)) == DataInfo.of(*memory_data.split(0.25))


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_is_the_same_as_in_memory(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "y.npy", np.arange(len(array)) % 3 + 2000)
    options = ReadOptions(labels_path=str(tmp_path / "y.npy"))
    memory = load(path=str(tmp_path / "x.npy"), options=options)
    found = load(path=str(tmp_path / "x.npy"), options=replace(options, from_disk=True))
    assert not isinstance(found.values, torch.Tensor)
    assert found.class_names == ("2000", "2001", "2002")
    assert_same(found, memory)


@pytest.mark.parametrize(("width", "most"), [(1, 3), (3, 7), (3, 10**6), (60, 7), (60, 10**6), (5000, 10**4)])
def test_any_rows_in_any_order_are_those_of_the_array(tmp_path, monkeypatch, width, most):
    """Far and near ones, the same twice, and of a system whose calls read less than they are asked for."""
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: read(file, min(size, most), place))
    array = RANDOM.normal(size=(3000, width)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    found = open_array(tmp_path / "x.npy", "x").typed(torch.float32)
    for rows in (
        [2999, 0, 1500, 1501, 1500, 7, 7, 2000],
        [5],
        [],
        RANDOM.integers(0, 3000, 40).tolist(),
        [3, 4, 5, 2900],
    ):
        for dtype in (torch.int64, torch.int32):
            assert torch.equal(found[torch.tensor(rows, dtype=dtype)], torch.from_numpy(array[np.array(rows, int)]))


def test_blocks_do_not_change_what_is_computed(tmp_path):
    """Several blocks, of which the last is shorter, in all passes."""
    array = RANDOM.normal(size=(1_500_001, 3))
    np.save(tmp_path / "x.npy", array)
    assert_same(*(load(path=str(tmp_path / "x.npy"), options=ReadOptions(from_disk=d)) for d in (True, False)))


@pytest.mark.parametrize(
    ("array", "passes"),
    [
        (RANDOM.integers(0, 256, (3000, 3, 8, 8), dtype=np.uint8), 2),  # counts; the rest
        (RANDOM.normal(size=(30_000, 10)).astype(np.float32), 3),  # means; deviations; the rest
        (RANDOM.normal(size=(30_000, 10)), 3),
        (RANDOM.integers(0, 70_000, (30_000, 10)), 3),
    ],
    ids=["bytes", "singles", "doubles", "whole"],
)
def test_a_file_is_read_as_often_as_is_said(tmp_path, monkeypatch, array, passes):
    """The held-out rows lie so close among the others that to read them apart would be to read the file again."""
    np.save(tmp_path / "x.npy", array)
    sizes = []
    raw = FileArray.raw

    def noted(self, index):
        found = raw(self, index)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(FileArray, "raw", noted)
    train, held_out = on_disk(tmp_path / "x.npy").split(0.25)
    info = DataInfo.of(train, held_out)
    rms = train.rms()
    assert sum(sizes) == passes * array.nbytes
    assert (info.digest, info.held_out_digest) == (fingerprint(train), fingerprint(held_out))
    assert rms == pytest.approx(train.batch(slice(None), torch.float64)[0].square().mean().sqrt().item(), rel=1e-12)


def test_a_survey_is_that_of_one_codec(tmp_path):
    """Data in other units have another root mean square, and the same checksum."""
    np.save(tmp_path / "x.npy", ARRAYS["images"])
    data = on_disk(tmp_path / "x.npy")
    other = replace(data, codec=Scaling((1.0, 2.0, 3.0), (5.0, 6.0, 7.0)))
    assert data.rms() != other.rms()
    assert other.rms() == pytest.approx(other.batch(slice(None), torch.float64)[0].square().mean().sqrt().item())
    assert fingerprint(data) == fingerprint(other)
    assert (data.survey.low, data.survey.high) == data.ends()


def write_photos(folder):
    for i in range(12):
        save(folder / f"photos/{'cat' if i % 3 else 'dog'}/{i}.png", noise(6, 4, 3, seed=i))
    return folder / "photos"


def write_mixed(folder):
    for i in range(6):
        save(folder / f"mixed/{i}.png", noise(6 + i, 4, seed=i))
    return folder / "mixed"


def write_archive(folder):
    np.savez_compressed(folder / "x.npz", x=ARRAYS["vectors"], labels=np.arange(5000) % 7)
    return folder / "x.npz"


def write_idx(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(ARRAYS["grey images"])))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(50) % 3))
    return folder / "train-images-idx3-ubyte.gz"


def write_big_endian_idx(folder):
    (folder / "x.idx").write_bytes(idx(np.arange(60).reshape(10, 6), 0x0B, ">i2"))
    return folder / "x.idx"


def write_images(folder):
    np.save(folder / "x.npy", ARRAYS["images"])
    return folder / "x.npy"


def write_parquet(folder):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": [{"bytes": png(i)} for i in range(9)], "label": ["b", "a", "b"] * 3})
    parquet.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


RESIZED = {"image_size": (8,), "channels": 3}
CONVERTED = {
    "folder": (write_photos, {}),
    "folder, resized": (write_mixed, RESIZED),
    "archive": (write_archive, {}),
    "IDX": (write_idx, {}),
    "IDX, resized": (write_idx, RESIZED),
    "IDX, big-endian": (write_big_endian_idx, {}),
    "array, resized": (write_images, RESIZED),
    "array, in grey": (write_images, {"channels": 1}),
    "parquet": (write_parquet, {}),
    "parquet without labels": (write_parquet, {"class_conditional": False}),
}


@pytest.mark.parametrize(("write", "given"), CONVERTED.values(), ids=CONVERTED.keys())
def test_what_is_converted_is_the_same_as_in_memory(tmp_path, monkeypatch, write, given):
    path = str(write(tmp_path))
    memory = load(path=path, options=ReadOptions(**given))
    options = ReadOptions(**given, from_disk=True, cache=str(tmp_path / "cache"))
    assert_same(load(path=path, options=options), memory)
    (entry,) = (tmp_path / "cache").iterdir()
    labels = set() if memory.labels is None else {"labels.npy"}
    assert {file.name for file in entry.iterdir()} == {"values.npy", "description.json"} | labels

    def unused(*arguments):
        raise AssertionError("converted again")

    monkeypatch.setattr(disk, "_write", unused)
    assert_same(load(path=path, options=options), memory)


def test_a_conversion_is_of_these_files_and_options(tmp_path):
    path = write_photos(tmp_path)
    options = ReadOptions(from_disk=True, cache=str(tmp_path / "cache"))
    first = load(path=str(path), options=options)
    moved = path.rename(tmp_path / "moved")
    assert torch.equal(load(path=str(moved), options=options).values[:], first.values[:])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert load(path=str(moved), options=replace(options, channels=1)).shape == (1, 6, 4)
    save(moved / "dog/0.png", noise(6, 4, 3, seed=99))
    changed = load(path=str(moved), options=options)
    assert not torch.equal(changed.values[:], first.values[:])
    assert torch.equal(changed.values[:], load(path=str(moved)).values)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_unreadable_images_are_left_out(tmp_path):
    path = write_photos(tmp_path)
    (path / "cat/1.png").write_bytes(b"text")
    options = ReadOptions(max_unreadable=0.5)
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        memory = load(path=str(path), options=options)
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        found = load(path=str(path), options=replace(options, from_disk=True, cache=str(tmp_path / "cache")))
    assert_same(found, memory)


def test_a_killed_conversion_is_begun_anew(tmp_path, monkeypatch):
    path = write_photos(tmp_path)
    options = ReadOptions(from_disk=True, cache=str(tmp_path / "cache"))
    original = Path.rename

    def killed(self, target):
        os._exit(9) if self.suffix == ".partial" else original(self, target)

    child = os.fork()
    if child == 0:
        Path.rename = killed
        load(path=str(path), options=options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (partial,) = (tmp_path / "cache").iterdir()
    assert partial.suffix == ".partial"
    assert len(list(partial.iterdir())) == 3
    assert_same(load(path=str(path), options=options), load(path=str(path)))
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [partial.name[1:].removesuffix(".partial")]


def test_one_process_converts_and_the_others_wait(tmp_path, monkeypatch):
    path = write_photos(tmp_path)
    options = ReadOptions(from_disk=True, cache=str(tmp_path / "cache"))
    written, found = [], []
    original = disk._write

    def noted(*arguments):
        written.append(1)
        original(*arguments)

    monkeypatch.setattr(disk, "_write", noted)
    threads = [threading.Thread(target=lambda: found.append(load(path=str(path), options=options))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert len(found) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for one in found:
        assert torch.equal(one.values[:], found[0].values[:])


def test_a_failed_conversion_leaves_nothing(tmp_path):
    path = write_photos(tmp_path)
    save(path / "cat/99.png", noise(5, 5))
    with pytest.raises(UsageError, match="images differ"):
        load(path=str(path), options=ReadOptions(from_disk=True, cache=str(tmp_path / "cache")))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("file", ["0.npy", "description.json", "labels.npy"])
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch, file):
    path = write_photos(tmp_path)
    options = ReadOptions(from_disk=True, cache=str(tmp_path / "cache"))
    sync = os.fsync

    def full(descriptor):
        if file in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=f"{file}': No space left on device; make room on the disk"):
        load(path=str(path), options=options)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(os, "fsync", sync)
    assert_same(load(path=str(path), options=options), load(path=str(path)))


def on_disk(path, **options):
    return load(path=str(path), options=ReadOptions(from_disk=True, **options))


def test_mistakes_are_named(tmp_path, monkeypatch):
    photos = write_photos(tmp_path)
    with pytest.raises(UsageError, match=r"photos'.*converted once.*name a folder for that with data.cache=FOLDER"):
        on_disk(photos)
    with pytest.raises(UsageError, match=r"data.cache='.*photos/cache': lies among the data"):
        on_disk(photos, cache=str(photos / "cache"))
    with pytest.raises(UsageError, match=r"data.cache='x': is for data that are read from disk"):
        ReadOptions(cache="x")
    with pytest.raises(UsageError, match=r"from_disk=True: data.name='digits' is made in memory"):
        load("digits", options=ReadOptions(from_disk=True))
    np.save(tmp_path / "x.npy", np.asfortranarray(ARRAYS["vectors"]))
    with pytest.raises(UsageError, match=r"x.npy'.*Fortran order.*save np.ascontiguousarray\(x\)"):
        on_disk(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", ARRAYS["vectors"])
    with pytest.raises(UsageError, match=r"max_gigabytes=1e-06.*or read each batch from disk with data.from_disk=True"):
        load(path=str(tmp_path / "x.npy"), options=ReadOptions(max_gigabytes=1e-6))
    with pytest.raises(UsageError, match="all samples are needed in memory"):
        on_disk(tmp_path / "x.npy").all()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"photos': takes 8.64e-07 GB on disk, and 1e-08 GB are free"):
        on_disk(photos, cache=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, "1 of 5000 samples hold NaN"), (1e300, "1 of 5000 samples hold NaN or infinity"), (None, "all values")],
)
def test_values_are_checked_as_in_memory(tmp_path, bad, message):
    array = np.zeros((5000, 3)) if bad is None else ARRAYS["vectors"].astype(np.float64)
    if bad is not None:
        array[4000, 2] = bad
    np.save(tmp_path / "x.npy", array)
    messages = []
    for from_disk in (False, True):
        with pytest.raises(UsageError, match=message) as raised:
            load(path=str(tmp_path / "x.npy"), options=ReadOptions(from_disk=from_disk))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_file_that_is_cut_short_while_it_is_used_is_named(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["vectors"])
    data = on_disk(tmp_path / "x.npy")
    data.batch(torch.tensor([4999]))
    os.truncate(tmp_path / "x.npy", 30_000)
    data.batch(torch.tensor([3]))
    with pytest.raises(UsageError, match=r"x.npy': has become shorter while it was read"):
        data.batch(torch.tensor([3, 4999]))
    with pytest.raises(UsageError, match=r"'x' declares 120,000 bytes"):
        on_disk(tmp_path / "x.npy")


@pytest.mark.parametrize("damage", ["values.npy", "description.json", "labels.npy", "another type"])
def test_a_damaged_conversion_is_named(tmp_path, damage):
    path = write_photos(tmp_path)
    on_disk(path, cache=str(tmp_path / "cache"))
    (entry,) = (tmp_path / "cache").iterdir()
    if damage == "another type":
        found = json.loads((entry / "description.json").read_text())
        (entry / "description.json").write_text(json.dumps(found | {"dtype": "manual_seed"}))
    else:
        os.truncate(entry / damage, 100)
    with pytest.raises(UsageError, match=f"{entry.name}': is damaged .*delete it"):
        on_disk(path, cache=str(tmp_path / "cache"))


MEMORY = """
import resource, sys
import torch
from scoresde import MLP, NetworkScoreModel, NoiseParametrization, TrainingOptions, VPSDE
from scoresde.data import ReadOptions, load
from scoresde.data.file_array import FileArray
from scoresde.data.info import DataInfo
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer

def trained(data, num_steps):
    train, held_out = data.split(0.01)
    DataInfo.of(train, held_out)
    train.rms()
    size = train.shape[0]
    model = NetworkScoreModel(MLP(size, width=16, depth=1), VPSDE(), NoiseParametrization(), (size,), train.codec)
    trainer = Trainer(model, train, DenoisingObjective(), TrainingOptions(num_steps=num_steps))
    for _ in range(num_steps):
        trainer.step()
    trainer.held_out_loss(held_out)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

options = ReadOptions(from_disk=True, max_gigabytes=1e-3)
trained(load(path=sys.argv[1], options=options), 2)
before = peak()
trained(load(path=sys.argv[2], options=options), 50)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """150 MB in a process that began with a file of 10 MB."""
    tile = RANDOM.integers(0, 256, (10_000, 1000), dtype=np.uint8)
    np.save(tmp_path / "small.npy", tile)
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (150_000, 1000))
    for start in range(0, len(big), len(tile)):
        big[start : start + len(tile)] = tile
    big.flush()
    del big
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small.npy"), str(tmp_path / "big.npy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30  # MB


def test_walking_again_warns_once(tmp_path):
    path = write_photos(tmp_path)
    (path / "cat/link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(UserWarning, match="1 links to folders") as warned:
        on_disk(path, cache=str(tmp_path / "cache"))
    assert len(warned) == 1
    assert folders.walk(path / "dog", "x")

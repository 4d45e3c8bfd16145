"""Tables, IDX and archives of one's own: what they give, and that no damage or bomb gets further than one line."""

import gzip
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import types
import zipfile
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from scoresde.data import options as options_module
from sde_configs import build, default


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(seed=0, shape=(4, 5, 3)):
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, "png")
    return file.getvalue()


def images(*seeds):
    return np.stack([noise(4, 5, 3, seed=s).transpose(2, 0, 1) for s in seeds])


def idx(array, code=8, kind=">u1"):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.astype(kind).tobytes()


@pytest.fixture
def arrow():
    """pyarrow, where the extra is installed."""
    pytest.importorskip("pyarrow.parquet")
    return sys.modules["pyarrow"]


def table(arrow, seeds, labels=None, bare=False, column="image", names=None):
    cells = [png(s) if bare else {"bytes": png(s), "path": f"{s}.png"} for s in seeds]
    made = arrow.table({column: cells} | ({} if labels is None else {"label": labels}))
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return made.replace_schema_metadata({"huggingface": json.dumps(features)}) if names else made


def write(made, path):
    sys.modules["pyarrow.parquet"].write_table(made, path)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("column", ["image", "img"])
def test_a_parquet_file(arrow, tmp_path, bare, column):
    write(table(arrow, [3, 1, 2], [1, 0, 1], bare, column, ["cat", "dog"]), tmp_path / "x.parquet")
    data = load(path=str(tmp_path / "x.parquet"))
    np.testing.assert_array_equal(data.values.numpy(), images(3, 1, 2))
    assert data.labels.tolist() == [1, 0, 1]
    assert data.class_names == ("cat", "dog")
    assert load(path=str(tmp_path / "x.parquet"), choices=ReadOptions(class_conditional=False)).labels is None


def test_a_folder_of_parquet_files_is_read_in_order_and_by_split(arrow, tmp_path):
    for i, name in enumerate(["train-00001-of-00002", "test-00000-of-00001", "train-00000-of-00002"]):
        write(table(arrow, [2 * i, 2 * i + 1], [i, i]), tmp_path / f"{name}.parquet")
    data = load(path=str(tmp_path))
    np.testing.assert_array_equal(data.values.numpy(), images(4, 5, 0, 1))
    assert data.labels.tolist() == [2, 2, 0, 0]
    assert load(path=str(tmp_path), choices=ReadOptions(split="test")).labels.tolist() == [1, 1]
    with pytest.raises(UsageError, match=r"data.split.*'valid'.*known are test, train"):
        load(path=str(tmp_path), choices=ReadOptions(split="valid"))


def test_words_become_classes_in_sorted_order(arrow, tmp_path):
    write(table(arrow, [0, 1, 2], ["dog", "ant", "dog"]), tmp_path / "x.parquet")
    data = load(path=str(tmp_path / "x.parquet"))
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ("ant", "dog"))


def test_unreadable_rows_keep_labels_with_their_images(arrow, tmp_path):
    made = arrow.table({"image": [png(0), b"torn", None, png(3)], "label": [0, 1, 2, 3]})
    write(made, tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match=r"2 of 4.*x.parquet, row 1 \(not an image.*row 2 \(holds no bytes\)"):
        data = load(path=str(tmp_path / "x.parquet"), choices=ReadOptions(max_unreadable=0.5))
    assert data.labels.tolist() == [0, 3]
    np.testing.assert_array_equal(data.values.numpy(), images(0, 3))


BAD_TABLES = {
    "no image": ({"picture": [b"x"]}, r"columns \['picture'\]; need 'image'"),
    "numbers": ({"image": [[1, 2]]}, "'image' of type list"),
    "no label": ({"image": [png(0), png(1)], "label": [0, None]}, "1 of 2 rows have no 'label'"),
    "float labels": ({"image": [png(0), png(1)], "label": [0.5, 1.0]}, "other things than whole numbers"),
    "negative labels": ({"image": [png(0), png(1)], "label": [-1, 1]}, "least is -1"),
    "hashes for labels": ({"image": [png(0), png(1)], "label": [2**40, 1]}, "the largest is 1099511627776"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_is_refused_for_a_reason(arrow, tmp_path, columns, message):
    write(arrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=message):
        load(path=str(tmp_path / "x.parquet"))


def save_to_disk(arrow, folder, made):
    """The layout that `datasets` writes, without needing it."""
    folder.mkdir(parents=True)
    with (
        arrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        arrow.ipc.new_stream(sink, made.schema) as stream,
    ):
        stream.write_table(made)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")


def test_a_folder_written_by_save_to_disk(arrow, tmp_path):
    save_to_disk(arrow, tmp_path / "one", table(arrow, range(600), [0] * 599 + [1], names=["a", "b"]))
    data = load(path=str(tmp_path / "one"))
    np.testing.assert_array_equal(data.values.numpy(), images(*range(600)))
    assert (data.labels.tolist()[-2:], data.class_names) == ([0, 1], ("a", "b"))
    save_to_disk(arrow, tmp_path / "two/train", table(arrow, [1, 2]))
    save_to_disk(arrow, tmp_path / "two/test", table(arrow, [3]))
    (tmp_path / "two/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    np.testing.assert_array_equal(load(path=str(tmp_path / "two")).values.numpy(), images(1, 2))
    assert len(load(path=str(tmp_path / "two"), choices=ReadOptions(split="test"))) == 1
    (tmp_path / "two/dataset_dict.json").write_text("[")
    with pytest.raises(UsageError, match="cannot be read as a data set on disk"):
        load(path=str(tmp_path / "two"))


REAL = """
import sys, numpy as np, datasets
from scoresde.data import load
images = [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(4)]
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
made = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1, 0]}, features=features)
made.save_to_disk(sys.argv[1] + "/saved")
made.to_parquet(sys.argv[1] + "/hub/train-00000-of-00001.parquet")
for data in (load(path=sys.argv[1] + "/saved"), load("hf:" + sys.argv[1] + "/hub")):
    assert data.values[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert data.labels.tolist() == [0, 1, 1, 0]
    assert data.class_names == ("a", "b")
"""


def test_what_datasets_itself_writes_and_loads(tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the extra is not installed")
    (tmp_path / "hub").mkdir()
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_of_the_hub_is_given_to_datasets(arrow, monkeypatch):
    made = table(arrow, [1, 2], [0, 1], names=["a", "b"])
    asked = []

    class Rows:
        features = types.SimpleNamespace(arrow_schema=made.schema)
        __len__ = lambda self: made.num_rows  # noqa: E731
        with_format = lambda self, kind: self  # noqa: E731
        select_columns = lambda self, columns: made.select(columns)  # noqa: E731

    def load_dataset(name, split):
        asked.append((name, split))
        if split == "none":
            raise ValueError("Unknown split")
        return Rows()

    Rows.select_columns = lambda self, columns: types.SimpleNamespace(iter=lambda n: iter([made.select(columns)]))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = load("hf:someone/pictures", choices=ReadOptions(split="test"))
    np.testing.assert_array_equal(data.values.numpy(), images(1, 2))
    assert asked == [("someone/pictures", "test")]
    with pytest.raises(UsageError, match=r"hf:x.*cannot load split 'none'.*Unknown split"):
        load("hf:x", choices=ReadOptions(split="none"))


@pytest.mark.parametrize(("name", "path"), [("hf:x", ""), ("", "x.parquet"), ("", "saved")])
def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch, name, path):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(options_module.importlib, "import_module", missing)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pip install scoresde\[data\]"):
        load(name, path and str(tmp_path / path))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("labels_suffix", ["", ".gz"])
def test_idx_with_its_labels_beside_it(tmp_path, suffix, labels_suffix):
    pack = {"": bytes, ".gz": gzip.compress}
    values = noise(5, 6, 7)
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(pack[suffix](idx(values)))
    assert load(path=str(path)).labels is None
    (tmp_path / f"t10k-labels-idx1-ubyte{labels_suffix}").write_bytes(pack[labels_suffix](idx(np.arange(5))))
    data = load(path=str(path))
    np.testing.assert_array_equal(data.values.numpy(), values[:, None])
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(load(path=str(tmp_path)).values, data.values)  # the folder will do
    (tmp_path / "other").write_bytes(idx(np.arange(5)[::-1]))
    assert load(path=str(path), choices=ReadOptions(labels_path=str(tmp_path / "other"))).labels.tolist() == [
        4,
        3,
        2,
        1,
        0,
    ]
    with pytest.raises(UsageError, match=r"labels_path='nowhere'.*cannot be read"):
        load(path=str(path), choices=ReadOptions(labels_path="nowhere"))


def test_a_folder_of_mnists_four_files_is_its_training_set(tmp_path):
    for part, count in (("train", 6), ("t10k", 4)):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(noise(count, 5, 5)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count)))
    data = load(path=str(tmp_path))
    assert data.values.shape == (6, 1, 5, 5)
    assert data.labels.tolist() == list(range(6))
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "more-images-idx3-ubyte")
    with pytest.raises(UsageError, match="holds 0 images"):  # which of the two is meant?
        load(path=str(tmp_path))


@pytest.mark.parametrize(("code", "kind"), [(9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_of_other_numbers_is_standardised(tmp_path, code, kind):
    values = np.random.default_rng(0).normal(size=(50, 3)) * 40
    (tmp_path / "x.idx").write_bytes(idx(values, code, kind))
    data = load(path=str(tmp_path / "x.idx"))
    np.testing.assert_allclose(data.values.numpy(), values.astype(kind), rtol=1e-6)
    torch.testing.assert_close(data.all()[0].std(0), torch.ones(3), rtol=0, atol=1e-5)


BOMB = struct.pack(">HBBIII", 0, 8, 3, 60_000, 1000, 1000)
IDX_MISTAKES = {
    "bomb": (BOMB, "takes 60 GB"),
    "packed bomb": (gzip.compress(BOMB), "takes 60 GB"),
    "lie": (gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 60, 1000, 1000)), "more than the file can hold"),
    "short": (idx(noise(3, 4, 4))[:-1], "more than the file can hold|holds 47 of the 48"),
    "packed and short": (gzip.compress(idx(noise(3, 4, 4))[:-1]), "holds 47 of the 48"),
    "long": (idx(noise(3, 4, 4)) + b"x", "holds more than the 48 bytes"),
    "packed and long": (gzip.compress(idx(noise(3, 4, 4)) + bytes(10**6)), "holds more than the 48 bytes"),
    "torn": (gzip.compress(idx(noise(3, 4, 4)))[:-12], "cannot be read as an IDX file"),
    "empty": (b"", "cannot be read"),
    "no header": (b"\1\2\3\4\5\6\7\x08", "no IDX header"),
    "one axis": (idx(np.arange(4)), r"\(4,\)"),
}


@pytest.mark.parametrize(("content", "message"), IDX_MISTAKES.values(), ids=IDX_MISTAKES.keys())
def test_an_idx_file_is_refused_for_a_reason(tmp_path, content, message):
    (tmp_path / "x-idx3-ubyte").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load(path=str(tmp_path / "x-idx3-ubyte"))


def npy_header(shape, kind="|u1"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


ARCHIVES = {
    "declared bomb": ({"x": npy_header((10**6, 10**6))}, "takes 1e\\+03 GB"),
    "packed bomb": ({"x": npy_header((10**8, 1)) + bytes(10**8)}, "an archive bomb"),
    "lie": ({"x": npy_header((100, 100)) + bytes(10)}, "declares 10,000 bytes.*holds 10"),
    "negative": ({"x": npy_header((-2, -3)) + bytes(6)}, "cannot be read|declares"),
    "labels bomb": ({"x": npy_header((2, 1)) + b"ab", "labels": npy_header((10**12,))}, "takes 1e\\+03 GB"),
}


@pytest.mark.parametrize(("arrays", "message"), ARCHIVES.values(), ids=ARCHIVES.keys())
def test_an_archive_bomb_is_refused(tmp_path, arrays, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(UsageError, match=message):
        load(path=str(tmp_path / "x.npz"))


def test_other_arrays_of_an_archive_are_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=noise(4, 3, 5, 5), unused=np.zeros(10**8, np.uint8))
    assert len(load(path=str(tmp_path / "x.npz"))) == 4


def test_a_bare_array_that_declares_too_much(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy_header((10**6, 10**6)))
    with pytest.raises(UsageError, match=r"takes 1e\+03 GB"):
        load(path=str(tmp_path / "x.npy"))


def test_bytes_are_images_with_channels_first(tmp_path):
    np.save(tmp_path / "x.npy", noise(5, 6, 7))
    assert load(path=str(tmp_path / "x.npy")).shape == (1, 6, 7)
    np.save(tmp_path / "x.npy", noise(5, 6, 7, 3))
    with pytest.raises(UsageError, match=r"channels last.*transpose\(0, 3, 1, 2\)"):
        load(path=str(tmp_path / "x.npy"))


def test_labels_path_is_for_idx_alone(tmp_path):
    np.save(tmp_path / "x.npy", noise(5, 6))
    with pytest.raises(UsageError, match=r"labels_path='y.npy': only IDX"):
        load(path=str(tmp_path / "x.npy"), choices=ReadOptions(labels_path="y.npy"))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_deviation_over_blocks_is_that_of_all(monkeypatch, offset):
    from scoresde.data import ArrayData, arrays

    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 8 + offset
    monkeypatch.setattr(arrays, "BLOCK", 100)
    assert ArrayData(values).std() == pytest.approx(values.double().std().item(), rel=1e-9)


def test_the_configuration_reaches_the_reader(tmp_path):
    config = default.get_config()
    known = {field.name: field.default for field in fields(ReadOptions)}
    assert {name: config.data[name] for name in known} == known  # one set of defaults
    np.save(tmp_path / "x.npy", noise(8, 6, 6))
    config.data.path, config.data.image_size = str(tmp_path / "x.npy"), (4,)
    train, held_out = build.build_data(config)
    assert (len(train), len(held_out), train.shape) == (6, 2, (1, 4, 4))
    del config.data["image_size"], config.data["max_unreadable"]  # as in a checkpoint from before there were choices
    assert build.build_data(config)[0].shape == (1, 6, 6)

"""Tables of images: parquet files, folders of `save_to_disk`, and names of the hub."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from scoresde.data import options as options_module
from tests.data.samples import images, png
from tests.limits import few_open_files


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
    assert load(path=str(tmp_path / "x.parquet"), options=ReadOptions(class_conditional=False)).labels is None


def test_a_folder_of_parquet_files_is_read_in_order_and_by_split(arrow, tmp_path):
    for i, name in enumerate(["train-00001-of-00002", "test-00000-of-00001", "train-00000-of-00002"]):
        write(table(arrow, [2 * i, 2 * i + 1], [i, i]), tmp_path / f"{name}.parquet")
    data = load(path=str(tmp_path))
    np.testing.assert_array_equal(data.values.numpy(), images(4, 5, 0, 1))
    assert (data.labels.tolist(), data.class_names) == ([1, 1, 0, 0], ("0", "2"))
    test = load(path=str(tmp_path), options=ReadOptions(split="test"))
    assert (test.labels.tolist(), test.class_names) == ([0, 0], ("1",))
    with pytest.raises(UsageError, match=r"data.split.*'valid'.*known are test, train"):
        load(path=str(tmp_path), options=ReadOptions(split="valid"))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_data_set_may_have_more_parts_than_files_can_be_open(arrow, tmp_path, kind):
    count = 40
    for i in range(count):
        part = table(arrow, [i], [i % 3])
        if kind == "parquet":
            write(part, tmp_path / f"train-{i:05d}-of-{count:05d}.parquet")
        else:
            save_to_disk(arrow, tmp_path, part, f"data-{i:05d}-of-{count:05d}.arrow")
    load(path=str(tmp_path))  # with what is imported on the way
    with few_open_files(12):
        data = load(path=str(tmp_path))
    np.testing.assert_array_equal(data.values.numpy(), images(*range(count)))
    assert data.labels.tolist() == [i % 3 for i in range(count)]


def test_words_become_classes_in_sorted_order(arrow, tmp_path):
    write(table(arrow, [0, 1, 2], ["dog", "ant", "dog"]), tmp_path / "x.parquet")
    data = load(path=str(tmp_path / "x.parquet"))
    assert (data.labels.tolist(), data.class_names) == ([1, 0, 1], ("ant", "dog"))


def test_unreadable_rows_keep_labels_with_their_images(arrow, tmp_path):
    made = arrow.table({"image": [png(0), b"torn", None, png(3)], "label": [0, 1, 2, 3]})
    write(made, tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match=r"2 of 4.*x.parquet, row 1 \(not an image.*row 2 \(holds no bytes\)"):
        data = load(path=str(tmp_path / "x.parquet"), options=ReadOptions(max_unreadable=0.5))
    assert (data.labels.tolist(), data.class_names) == ([0, 1], ("0", "3"))
    np.testing.assert_array_equal(data.values.numpy(), images(0, 3))


BAD_TABLES = {
    "no image": ({"picture": [b"x"]}, r"columns \['picture'\]; need 'image'"),
    "numbers": ({"image": [[1, 2]]}, "'image' of type list"),
    "no label": ({"image": [png(0), png(1)], "label": [0, None]}, "1 of 2 rows have no 'label'"),
    "float labels": ({"image": [png(0), png(1)], "label": [0.5, 1.0]}, "other things than whole numbers"),
    "negative labels": ({"image": [png(0), png(1)], "label": [-1, 1]}, "smallest is -1"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_is_refused_for_a_reason(arrow, tmp_path, columns, message):
    write(arrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=message):
        load(path=str(tmp_path / "x.parquet"))


def save_to_disk(arrow, folder, made, name="data-00000-of-00001.arrow"):
    """The layout that `datasets` writes, without needing it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        arrow.OSFile(str(folder / name), "wb") as sink,
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
    assert len(load(path=str(tmp_path / "two"), options=ReadOptions(split="test"))) == 1
    (tmp_path / "two/dataset_dict.json").write_text("[")
    with pytest.raises(UsageError, match="cannot be read as a data set on disk"):
        load(path=str(tmp_path / "two"))


REAL = """
import pathlib, sys, numpy as np, datasets
from scoresde.data import ReadOptions, load
images = [np.full((4, 4, 3), 10 * i, np.uint8) for i in range(4)]
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
made = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1, 0]}, features=features)
made.save_to_disk(sys.argv[1] + "/saved")
made.to_parquet(sys.argv[1] + "/hub/train-00000-of-00001.parquet")
options = ReadOptions(from_disk=True, cache=sys.argv[1] + "/converted")
for given in (ReadOptions(), options, options):
    for data in (load(path=sys.argv[1] + "/saved", options=given), load("hf:" + sys.argv[1] + "/hub", options=given)):
        assert data.values[:][:, 0, 0, 0].tolist() == [0, 10, 20, 30]
        assert data.labels.tolist() == [0, 1, 1, 0]
        assert data.class_names == ("a", "b")
assert len(list(pathlib.Path(options.cache).iterdir())) == 2
"""


STREAMED = """
import pathlib, sys, numpy as np, datasets
from scoresde.data import ReadOptions, load
images = [np.full((4, 4, 3), i % 250, np.uint8) for i in range(600)]
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
made = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(600)]}, features=features)
root = pathlib.Path(sys.argv[1])
made.to_parquet(root / "hub/data/train-00000-of-00001.parquet")
classes = "{'0': a, '1': b}"
rows = "features: [{name: image, dtype: image}, {name: label, dtype: {class_label: {names: " + classes + "}}}]"
card = "dataset_info: {" + rows + ", splits: [{name: train, num_bytes: 9, num_examples: 600}]}"
(root / "hub/README.md").write_text("---\\n" + card + "\\n---\\n")
before = set(root.glob("cache/**/*.arrow"))
told = []
options = ReadOptions(from_disk=True, cache=str(root / "converted"))
data = load("hf:" + str(root / "hub"), options=options, watch=lambda count, total: told.append((count, total)))
assert set(root.glob("cache/**/*.arrow")) == before  # nothing is kept beside what is converted
assert told[-1] == (600, 600)
again = load("hf:" + str(root / "hub"), options=options, watch=lambda *_: sys.exit("converted twice"))
memory = load("hf:" + str(root / "hub"))
for found in (data, again):
    assert (found.values[:] == memory.values).all()
    assert (found.labels == memory.labels).all()
    assert found.class_names == memory.class_names == ("a", "b")
"""


def run_with_datasets(script, tmp_path):
    """Runs a script whose `datasets` keeps its files in a folder and asks no network."""
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the extra is not installed")
    (tmp_path / "hub/data").mkdir(parents=True)
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_data_set_of_the_hub_is_streamed_to_disk(tmp_path):
    """One that says how many rows it has is converted while it is downloaded, and is the same as in memory."""
    run_with_datasets(STREAMED, tmp_path)


def test_what_datasets_itself_writes_and_loads(tmp_path):
    run_with_datasets(REAL, tmp_path)


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
    data = load("hf:someone/pictures", options=ReadOptions(split="test"))
    np.testing.assert_array_equal(data.values.numpy(), images(1, 2))
    assert asked == [("someone/pictures", "test")]
    with pytest.raises(UsageError, match=r"hf:x.*cannot load split 'none'.*Unknown split"):
        load("hf:x", options=ReadOptions(split="none"))


@pytest.mark.parametrize(("name", "path"), [("hf:x", ""), ("", "x.parquet"), ("", "saved")])
def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch, name, path):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(options_module.importlib, "import_module", missing)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pip install 'scoresde\[data\]'"):
        load(name, path and str(tmp_path / path))

"""Captions of users' data: those that lie with the images, and those that are made."""

import json
import warnings

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from scoresde.data.captioning import CLASS_WORDINGS, varied_edges
from scoresde.data.strokes import Strokes
from scoresde.data.wording import parse
from tests.data.samples import noise, png, save

OWN = ReadOptions(captions="own")


def captions(data):
    return [data.texts[number] for number in data.cond["text"].tolist()]


def read(path, **options):
    return load(path=str(path), options=ReadOptions(**options))


@pytest.fixture
def pictures(tmp_path):
    """Four images in two folders."""
    for number, name in enumerate(["a/0", "a/1", "b/0", "b/1"]):
        save(tmp_path / "x" / f"{name}.png", noise(6, 4, 3, seed=number))
    return tmp_path / "x"


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_a_text_beside_an_image_is_its_caption(pictures):
    for name, text in (("a/0", "a dog"), ("a/1", " a\n  cat\n"), ("b/0", "a dog"), ("b/1", "\ufeffein Käfer")):
        (pictures / f"{name}.txt").write_text(text, encoding="utf-8")
    data = read(pictures, captions="own")
    assert captions(data) == ["a dog", "a cat", "a dog", "ein Käfer"]
    assert data.texts == ("a dog", "a cat", "ein Käfer")
    assert (data.labels, data.class_names) == (None, ())
    assert read(pictures).labels.tolist() == [0, 0, 1, 1]


def test_metadata_name_images_from_their_folder(pictures):
    write(pictures / "metadata.jsonl", {"file_name": "a/0.png", "text": "one"}, {"file_name": "./b/0.png", "text": "3"})
    write(pictures / "b" / "metadata.jsonl", {"file_name": "1.png", "caption": "four"})
    (pictures / "a" / "1.txt").write_text("two")
    assert captions(read(pictures, captions="own")) == ["one", "two", "3", "four"]


def test_missing_captions_are_counted(pictures):
    (pictures / "a" / "1.txt").write_text("two")
    with pytest.warns(UserWarning, match="3 of 4 images have no caption; theirs is the empty text"):
        data = read(pictures, captions="own")
    assert captions(data) == ["", "two", "", ""]
    (pictures / "a" / "1.txt").unlink()
    with pytest.raises(UsageError, match=r"data.captions='own', and no image has a caption; write NAME.txt"):
        read(pictures, captions="own")


def test_captions_are_those_of_the_images_that_can_be_read(pictures):
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (pictures / f"{name}.txt").write_text(name)
    (pictures / "a" / "1.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="left out 1 of 4 images"):
        assert captions(read(pictures, captions="own", max_unreadable=0.5)) == ["a/0", "b/0", "b/1"]


@pytest.mark.parametrize("line", ['{"text": "x"}', '["a/0.png", "x"]', '{"file_name": "a/0.png", "text": 3}'])
def test_damaged_metadata_are_named(pictures, line):
    (pictures / "metadata.jsonl").write_text(f'\n{{"file_name": "a/0.png", "text": "x"}}\n{line}\n')
    with pytest.raises(UsageError, match=r"metadata.jsonl', line 3: need file_name and text") as caught:
        read(pictures, captions="own")
    assert "\n" not in str(caught.value)
    (pictures / "metadata.jsonl").write_text("{")
    with pytest.raises(UsageError, match=r"metadata.jsonl': cannot be read as lines of JSON"):
        read(pictures, captions="own")


def test_a_text_file_that_is_no_caption_is_named(pictures):
    (pictures / "a" / "0.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match=r"0.txt': cannot be read as text in UTF-8"):
        read(pictures, captions="own")
    (pictures / "a" / "0.txt").write_bytes(b"x" * 70_000)
    with pytest.raises(UsageError, match=r"0.txt' is no caption: 70,000 bytes"):
        read(pictures, captions="own")


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_column_of_a_table_holds_captions(tmp_path, arrow, column):
    rows = {"image": [png(seed) for seed in range(4)], column: ["a", None, "b", "a"], "label": [0, 1, 0, 1]}
    arrow.parquet.write_table(arrow.table(rows), tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="1 of 4 images have no caption"):
        data = read(tmp_path / "x.parquet", captions="own")
    assert captions(data) == ["a", "", "b", "a"]
    assert data.texts == ("a", "", "b")


def test_the_first_of_several_captions_is_taken(tmp_path, arrow):
    rows = {"image": [png(0), png(1)], "captions": [["a", "b"], ["c"]]}
    arrow.parquet.write_table(arrow.table(rows), tmp_path / "x.parquet")
    assert captions(read(tmp_path / "x.parquet", captions="own")) == ["a", "c"]


def test_a_table_without_texts_is_refused(tmp_path, arrow):
    arrow.parquet.write_table(arrow.table({"image": [png(0)], "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match=r"needs a column 'text' or 'caption', not \['image', 'label'\]"):
        read(tmp_path / "x.parquet", captions="own")
    arrow.parquet.write_table(arrow.table({"image": [png(0)], "text": [7]}), tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="'text' holds a int; need text"):
        read(tmp_path / "x.parquet", captions="own")


def test_captions_of_data_on_disk_are_those_in_memory(pictures, tmp_path):
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (pictures / f"{name}.txt").write_text(name[0])
    options = {"from_disk": True, "cache": str(tmp_path / "cache")}
    memory = read(pictures, captions="own")
    for _ in range(2):  # converted, then read
        disk = read(pictures, captions="own", **options)
        assert (captions(disk), disk.texts) == (["a", "a", "b", "b"], ("a", "b"))
        assert disk.survey.digest == memory.survey.digest
    made = read(pictures, captions="classes", **options)
    assert captions(made) == captions(read(pictures, captions="classes"))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    read(pictures, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # what captions are made of is the same conversion


def test_classes_are_told_in_several_wordings(tmp_path):
    for number in range(60):
        save(tmp_path / ("ant" if number % 2 else "sea_horse") / f"{number}.png", noise(4, 4, seed=number))
    data = read(tmp_path, captions="classes")
    assert all(("an ant" in said or "one ant" in said or "ant in" in said) for said in captions(data)[:30])
    assert all("sea horse" in said for said in captions(data)[30:])
    assert len(data.texts) == 2 * len(CLASS_WORDINGS)
    assert captions(read(tmp_path, captions="classes")) == captions(data)


def test_captions_of_digits_are_made_of_labels_and_strokes(tmp_path):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    some = slice(0, 400)
    np.savez(tmp_path / "x.npz", x=bunch.images[some].astype(np.uint8), y=bunch.target[some])
    data = read(tmp_path / "x.npz", captions="digits")
    said = [parse(text) for text in captions(data)]
    assert [description.digit for description in said] == bunch.target[some].tolist()
    counts = np.bincount([d.slant + 2 for d in said if d.slant is not None])
    assert counts.min() > 0.13 * counts.sum()  # fifths, of about 320
    assert all(description.size is None for description in said)  # all digits fill their 8 x 8 pixels
    np.savez(tmp_path / "y.npz", x=16 - bunch.images[some].astype(np.uint8), y=bunch.target[some])
    assert captions(read(tmp_path / "y.npz", captions="digits")) == captions(data)  # dark on light
    chosen = np.flatnonzero(bunch.target > 6)[:200]
    np.savez(tmp_path / "z.npz", x=bunch.images[chosen].astype(np.uint8), y=bunch.target[chosen])
    said = [parse(text).digit for text in captions(read(tmp_path / "z.npz", captions="digits"))]
    assert said == bunch.target[chosen].tolist()  # 7, 8 and 9, which are classes 0, 1 and 2


def test_attributes_that_hardly_vary_are_not_told():
    wide, narrow = torch.linspace(-1, 1, 100, dtype=torch.float64), torch.full((100,), 0.5, dtype=torch.float64)
    assert set(varied_edges(Strokes(narrow, wide, wide, wide, narrow))) == {"slant", "size", "x"}


def test_captions_that_cannot_be_had_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=noise(6, 8, 8), y=np.arange(6) % 3)
    np.savez(tmp_path / "no.npz", x=noise(6, 8, 8))
    np.savez(tmp_path / "colour.npz", x=noise(6, 3, 8, 8), y=np.arange(6) % 3)
    np.savez(tmp_path / "many.npz", x=noise(12, 8, 8), y=np.arange(12))
    for name, kind, message in (
        ("x", "own", "captions='own' reads the captions of folders of images and of tables"),
        ("x", "classes", "captions='classes' needs the names of the classes, and the data have only numbers"),
        ("no", "digits", "captions='digits' needs labels, and here are none"),
        ("colour", "digits", r"needs grey images of digits, not samples of shape \(3, 8, 8\)"),
        ("many", "digits", r"needs classes that are digits, 0 to 9, not \['10', '11'\]"),
    ):
        with pytest.raises(UsageError, match=message):
            read(tmp_path / f"{name}.npz", captions=kind)
    with pytest.raises(UsageError, match=r"unknown data.captions 'ownn': did you mean 'own'"):
        ReadOptions(captions="ownn")
    with pytest.raises(UsageError, match=r"captions='classes': is made from labels; set data.class_conditional=True"):
        ReadOptions(captions="classes", class_conditional=False)
    with pytest.raises(UsageError, match=r"data.name='digits': data.captions='own' is for data of your own"):
        load("digits", options=OWN)


def test_built_in_digits_can_be_captioned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load("digits", options=ReadOptions(captions="digits"))
    assert parse(captions(data)[7]).digit == 7

"""Folders of images: their order and classes, and what is left out, refused or named."""

import os

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from tests.data.samples import noise, save


def test_a_folder_gives_sorted_images_and_classes(photos):
    data = load(path=str(photos))
    order = [5, 2, 3, 1, 4, 0]  # ant/4, ant/x/3, cat/1, cat/2, dog/0, dog/1
    np.testing.assert_array_equal(
        data.values.numpy(), np.stack([noise(6, 4, 3, seed=i).transpose(2, 0, 1) for i in order])
    )
    assert data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.num_classes, data.values.dtype) == (3, torch.uint8)
    assert (data.codec.center, data.codec.scale) == (127.5, 127.5)


def test_names_of_classes_stay_with_the_parts(photos):
    train, held_out = load(path=str(photos)).split(0.5)
    assert train.class_names == held_out.class_names == train.to("cpu").class_names == ("ant", "cat", "dog")
    assert train.num_classes == 3  # also where a part lacks the last


def test_labels_can_be_left_out(photos):
    data = load(path=str(photos), options=ReadOptions(class_conditional=False))
    assert data.labels is None
    assert data.class_names == ()


@pytest.mark.parametrize("extra", ["top.png", None])
def test_folders_are_classes_only_where_all_images_lie_in_one_of_several(tmp_path, extra):
    for i, name in enumerate(["a/1.png", "a/2.png", extra]):
        if name:
            save(tmp_path / name, noise(4, 4, seed=i))
    assert load(path=str(tmp_path)).labels is None


def test_folders_of_splits_are_not_classes(tmp_path):
    for i, name in enumerate(["train/a/1", "train/b/2", "test/a/3", "test/b/4", "test/b/5"]):
        save(tmp_path / f"{name}.png", noise(4, 4, seed=i))
    assert load(path=str(tmp_path)).labels.tolist() == [0, 1]
    assert load(path=str(tmp_path), options=ReadOptions(split="test")).labels.tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match=r"unknown data.split.*'tset': did you mean 'test'"):
        load(path=str(tmp_path), options=ReadOptions(split="tset"))


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_odd_things_in_a_folder(photos, tmp_path_factory):
    expected = load(path=str(photos)).values
    (photos / ".hidden").mkdir()
    save(photos / ".hidden/x.png", noise(6, 4, 3))
    save(photos / "cat/.x.png", noise(6, 4, 3))
    (photos / "cat/notes.txt").write_text("not an image")
    os.mkfifo(photos / "cat/pipe.png")
    assert torch.equal(load(path=str(photos)).values, expected)
    (photos / "cat/loop").symlink_to(photos)
    with pytest.warns(UserWarning, match=r"1 links to folders are not followed.*loop"):
        assert torch.equal(load(path=str(photos)).values, expected)
    (photos / "cat/loop").unlink()
    outside = tmp_path_factory.mktemp("outside") / "y.png"
    save(outside, noise(6, 4, 3, seed=9))
    (photos / "dog/9.png").symlink_to(outside)
    assert len(load(path=str(photos))) == 7
    outside.unlink()
    with pytest.raises(UsageError, match=r"dog/9.png' \(.*No such file"):
        load(path=str(photos))


def test_names_that_are_not_text(tmp_path):
    try:
        save(tmp_path / os.fsdecode(b"\xff\xfe") / "1.png", noise(4, 4))
    except OSError:
        pytest.skip("this disk has only names that are text")
    save(tmp_path / "b/2.png", noise(4, 4, seed=1))
    (tmp_path / "b" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(UsageError, match="udcff") as raised:
        load(path=str(tmp_path))
    str(raised.value).encode()  # can be printed


@pytest.mark.parametrize("content", [{}, {"x.txt": b""}, {"a.png": b"", "b.parquet": b""}])
def test_a_folder_of_nothing_or_of_both(tmp_path, content):
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    with pytest.raises(UsageError, match=r"holds \d images and \d parquet files"):
        load(path=str(tmp_path))

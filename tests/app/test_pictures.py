"""Pictures of samples of any shape, and the numbers beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app.pictures import labels_array, save_numbers, save_picture
from scoresde.data.info import DataInfo

GAP = 1  # pixels of a picture between two images, before it is enlarged
ZOOM = 6  # of images of 8x8


@pytest.mark.parametrize("columns", [3, 10])
def test_a_column_of_the_picture_is_a_class(tmp_path, columns):
    labels = torch.arange(4 * columns + 1) % columns
    raw = labels[:, None, None, None].expand(-1, 1, 8, 8) * (16.0 / (columns - 1))
    save_picture(tmp_path / "p.png", raw, DataInfo(0.0, 16.0, columns), labels)
    with Image.open(tmp_path / "p.png") as picture:
        grid = np.asarray(picture)
    pitch = ZOOM * (8 + GAP)
    assert grid.shape == (5 * pitch + ZOOM * GAP, columns * pitch + ZOOM * GAP)
    for k in range(columns):
        column = grid[ZOOM * GAP : 4 * pitch, k * pitch + ZOOM * GAP : (k + 1) * pitch]
        inside = column[np.arange(len(column)) % pitch < ZOOM * 8]
        assert (inside == round(255 * k / (columns - 1))).all()


def test_the_number_of_columns_can_be_given(tmp_path):
    save_picture(tmp_path / "p.png", torch.zeros(6, 1, 8, 8), DataInfo(0.0, 1.0, 2), columns=3)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (ZOOM * (3 * (8 + GAP) + GAP), ZOOM * (2 * (8 + GAP) + GAP))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 5), (3, 8, 8), (4, 8, 8), (2,), (1,), (5,), (1, 16), (2, 3, 3, 3)])
def test_data_of_any_shape_has_a_picture(tmp_path, shape):
    raw = torch.randn(120, *shape, generator=torch.Generator().manual_seed(0))
    save_picture(tmp_path / "p.png", raw, DataInfo(-2.0, 2.0, 0))
    with Image.open(tmp_path / "p.png") as picture:
        assert min(picture.size) > 50


def test_numbers_hold_arrays_by_name(tmp_path):
    raw = torch.arange(6.0).reshape(3, 2)
    seeds = np.array([[2**63, 0]], dtype=np.uint64)
    save_numbers(tmp_path / "a.npz", samples=raw, labels=torch.tensor([2, 0, 1]), seeds=seeds)
    with np.load(tmp_path / "a.npz") as arrays:
        assert set(arrays) == {"samples", "labels", "seeds"}
        assert (arrays["samples"] == raw.numpy()).all()
        assert arrays["labels"].tolist() == [2, 0, 1]
        assert arrays["seeds"].tolist() == [[2**63, 0]]


def test_samples_without_classes_have_the_label_minus_one():
    assert labels_array(None, 3).tolist() == [-1] * 3
    assert labels_array(torch.tensor([2, 0]), 2).tolist() == [2, 0]

"""Many images into one array: the same for any number of threads, with the unreadable counted and named."""

import os
import warnings

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ReadOptions, decoding, load
from tests.data.samples import noise, save


def test_threads_do_not_change_the_order(tmp_path, monkeypatch):
    for i in range(100):
        save(tmp_path / f"{i:03}.png", noise(40, 40, seed=i) if i % 3 else np.full((40, 40), i, np.uint8))
    monkeypatch.setattr(decoding, "BATCH", 3)
    threaded = load(path=str(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert torch.equal(load(path=str(tmp_path)).values, threaded.values)
    assert (threaded.values[99] == 99).all()


def test_images_that_differ_are_refused_with_the_remedy(photos):
    save(photos / "dog/9.png", noise(5, 7))
    with pytest.raises(
        UsageError, match=r"ant/4.png' has 3 channels of 6x4.*dog/9.png' has 1 channel of 5x7.*image_size=4.*channels=3"
    ):
        load(path=str(photos))
    assert load(path=str(photos), options=ReadOptions(image_size=(4,), channels=3)).shape == (3, 4, 4)


def test_unreadable_images_are_left_out_counted_and_named(photos):
    (photos / "cat/15.png").write_bytes((photos / "cat/1.png").read_bytes()[:50])
    (photos / "cat/0.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 2 of 8 images.*cat/0.jpg' \(not an image.*cat/15.png' \("):
        data = load(path=str(photos), options=ReadOptions(max_unreadable=0.25))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UsageError, match=r"2 of 8 images.*cat/0.jpg.*raise data.max_unreadable=0.24"):
        load(path=str(photos), options=ReadOptions(max_unreadable=0.24))
    with pytest.raises(UsageError, match="1 of 8 images"):
        load(path=str(photos))


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(UsageError, match=r"no image that can be read.*x.png"):
        load(path=str(tmp_path), options=ReadOptions(max_unreadable=1.0))


def test_more_than_fits_is_refused_before_it_is_allocated(photos):
    with pytest.raises(UsageError, match=r"takes 4.32e-07 GB.*max_gigabytes=1e-07"):
        load(path=str(photos), options=ReadOptions(max_gigabytes=1e-7))


def test_nothing_is_left_of_the_filters_of_warnings(photos):
    before = list(warnings.filters)
    load(path=str(photos))
    assert warnings.filters == before

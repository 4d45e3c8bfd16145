"""IDX files: images, labels beside them, other numbers, and damage."""

import gzip
import struct

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from tests.data.samples import idx, noise


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
    turned = load(path=str(path), options=ReadOptions(labels_path=str(tmp_path / "other")))
    assert turned.labels.tolist() == [4, 3, 2, 1, 0]
    with pytest.raises(UsageError, match=r"labels_path='nowhere'.*cannot be read"):
        load(path=str(path), options=ReadOptions(labels_path="nowhere"))


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

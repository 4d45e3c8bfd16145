"""Sources by name, and how the configuration reaches the readers."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ReadOptions, load
from sde_configs import build, default
from tests.data.samples import noise


def test_digits_are_those_of_uci():
    data = load("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert (int(data.values.min()), int(data.values.max())) == (0, 16)
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    x, labels = data.all()
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert torch.equal(labels, data.labels)
    assert torch.equal(data.codec.decode(x), data.values.float())


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"data.name 'digit'.*did you mean 'digits'"):
        load("digit")


def test_the_configuration_reaches_the_reader(tmp_path):
    config = default.get_config()
    known = {field.name: field.default for field in fields(ReadOptions)}
    assert {name: config.data[name] for name in known} == known  # one set of defaults
    np.save(tmp_path / "x.npy", noise(8, 6, 6))
    config.data.path, config.data.image_size = str(tmp_path / "x.npy"), (4,)
    train, held_out = build.build_data(config)
    assert (len(train), len(held_out), train.shape) == (6, 2, (1, 4, 4))
    del config.data["image_size"], config.data["max_unreadable"]  # as in a checkpoint from before there were options
    assert build.build_data(config)[0].shape == (1, 6, 6)


def test_labels_path_is_for_idx_and_npy(tmp_path):
    np.savez(tmp_path / "x.npz", x=noise(5, 6))
    with pytest.raises(UsageError, match=r"labels_path='y.npy': only IDX and .npy files"):
        load(path=str(tmp_path / "x.npz"), options=ReadOptions(labels_path="y.npy"))
    np.save(tmp_path / "x.npy", noise(5, 6))
    with pytest.raises(UsageError, match=r"labels_path='y.npy': cannot be read"):
        load(path=str(tmp_path / "x.npy"), options=ReadOptions(labels_path="y.npy"))
    options = ReadOptions(labels_path=str(tmp_path / "y.npy"))
    np.save(tmp_path / "y.npy", np.array([3, 1, 3, 2, 1]))
    data = load(path=str(tmp_path / "x.npy"), options=options)
    assert (data.labels.tolist(), data.class_names) == ([2, 0, 2, 1, 0], ("1", "2", "3"))
    np.save(tmp_path / "y.npy", np.arange(4))
    with pytest.raises(UsageError, match=r"x.npy': 'labels' is of type int64 and shape \(4,\); need 5 integers"):
        load(path=str(tmp_path / "x.npy"), options=options)

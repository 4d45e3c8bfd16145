"""What is said while data are converted to be read from disk."""

import re

import numpy as np
import pytest

from scoresde import UsageError
from scoresde.app import progress
from scoresde.app.config import load_config, override
from scoresde.app.conversion import _shown, read_data
from tests.data.samples import noise, save


@pytest.fixture
def photos(tmp_path):
    for i in range(12):
        save(tmp_path / f"photos/{i:02}.png", noise(6, 4, 3, seed=i))
    return tmp_path / "photos"


def config_of(photos, *more):
    config = load_config("vp", None)
    override(config, [f"--config.data.path={photos}", "--config.data.from_disk=True", *more])
    return config


def test_a_conversion_shows_its_progress_and_says_where_the_file_lies(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    (photos / "05.png").write_bytes(b"text")
    config = config_of(photos, f"--config.data.cache={tmp_path / 'cache'}", "--config.data.max_unreadable=0.5")
    with pytest.warns(UserWarning, match="left out 1 of 12"):
        train, held_out = read_data(config)
    (values,) = (tmp_path / "cache").glob("*/values.npy")
    *lines, said = capsys.readouterr().err.splitlines()
    assert len(train) + len(held_out) == 11
    assert len(lines) >= 11
    for count, line in enumerate(lines[:11], 1):
        assert re.match(rf"convert {count}/12 \d+%  .* samples/s  \d+ s left", line)
    assert said == f"converted to {values} ({values.stat().st_size / 1e9:.3g} GB); the next run takes it from there"
    assert [len(part) for part in read_data(config)] == [len(train), len(held_out)]
    assert capsys.readouterr().err == ""  # as nothing is converted


def test_images_that_are_brought_to_one_size_show_both_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    np.savez(tmp_path / "x.npz", x=noise(8, 8, 8)[:, None].repeat(3, 1))
    more = [f"--config.data.cache={tmp_path / 'cache'}", "--config.data.image_size=4"]
    train, _ = read_data(config_of(tmp_path / "x.npz", *more))
    assert train.shape == (3, 4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("convert 8/8") for line in lines) >= 2
    assert sum(line.startswith("converted to") for line in lines) == 1


def test_a_conversion_that_fails_says_why(photos, tmp_path, capsys):
    save(photos / "99.png", noise(5, 5))
    with pytest.raises(UsageError, match="images differ"):
        read_data(config_of(photos, f"--config.data.cache={tmp_path / 'cache'}"))
    assert "converted to" not in capsys.readouterr().err


def test_each_store_has_its_own_bar_even_for_one_sample(capsys):
    with _shown() as (watch, shown):
        watch(1, 1)
        watch(1, 1)
    assert [bar.count for bar in shown] == [1, 1]
    assert capsys.readouterr().err.count("convert 1/1 100%") == 2

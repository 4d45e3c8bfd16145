"""Fixtures of the tests of data."""

import sys

import pytest

from tests.data.samples import noise, save


@pytest.fixture
def photos(tmp_path):
    """Six colour images of three classes, 6 high and 4 wide."""
    for i, name in enumerate(["dog/1", "cat/2", "ant/x/3", "cat/1", "dog/0", "ant/4"]):
        save(tmp_path / f"{name}.png", noise(6, 4, 3, seed=i))
    return tmp_path


@pytest.fixture
def arrow():
    """pyarrow, where the extra is installed."""
    pytest.importorskip("pyarrow.parquet")
    return sys.modules["pyarrow"]

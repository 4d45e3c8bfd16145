"""Choices about data of one's own."""

import pytest

from scoresde import UsageError
from scoresde.data import ReadOptions

BAD = {
    "image_size": [(-1,), (1, 2, 3), (0, 5), (1.5,), ("x",), (10**9,), (True,)],
    "resize_mode": ["cropp", ""],
    "channels": [2, -1, 4],
    "max_unreadable": [-0.1, 1.1, float("nan")],
    "max_gigabytes": [0.0, -1.0, float("nan")],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_choices_without_meaning_are_refused(field, value):
    with pytest.raises(UsageError, match=f"data.{field}"):
        ReadOptions(**{field: value})

"""The table of similarities shows its numbers, its texts letter by letter, and the images above their columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.plots import image_of, similarities


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_what_is_shown(channels):
    values = torch.tensor([[0.9, -0.2], [0.1, 0.8]])
    images = None if channels is None else torch.rand(2, channels, 6, 5)
    figure = similarities(values, ["costs $3\nand more", "x" * 100], images)
    table, above = figure.axes[:2]
    np.testing.assert_allclose(table.images[0].get_array(), values.numpy())
    assert table.images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in table.get_yticklabels()] == [r"costs \$3 and more", "x" * 57 + "..."]
    assert [label.get_text() for label in table.get_xticklabels()] == ([] if channels else ["0", "1"])
    assert len(above.images) == (channels is not None)
    image_of(figure, dpi=60)
    assert above.get_position().x0 == pytest.approx(table.get_position().x0)
    assert above.get_position().width == pytest.approx(table.get_position().width)


def test_mistakes_are_named():
    with pytest.raises(UsageError, match=r"values of shape \(2, 3\): need \(2, 2\), one each pair"):
        similarities(torch.zeros(2, 3), ["a", "b"])

"""The picture of attention: any number of words, and what is refused."""

import pytest
import torch

from scoresde import UsageError, plots
from tests.plots.drawing import drawn


@pytest.mark.parametrize(("words", "channels", "strips"), [(1, 1, 2), (8, 3, 2), (9, 3, 3)])
def test_words_stand_in_rows_of_at_most_eight(words, channels, strips):
    maps = torch.rand(words, 3, 2, generator=torch.Generator().manual_seed(0))
    names = [f"${k}" for k in range(words)]  # no formula
    figure = plots.attention(torch.zeros(channels, 12, 8), maps, names, "a $ title")
    assert drawn(figure) > 1000
    assert len(figure.axes) == strips
    labels = [label.get_text() for axes in figure.axes[1:] for label in axes.get_xticklabels()]
    assert [label.replace("\\", "") for label in labels] == names
    said = ", ".join(axes.get_xlabel().removeprefix("mean shares: ") for axes in figure.axes[1:])
    assert said == ", ".join(f"{share:.3f}" for share in maps.mean((1, 2)).tolist())


def test_a_map_of_one_value_is_drawn():
    assert drawn(plots.attention(torch.ones(1, 4, 4), torch.full((2, 2, 2), 0.5), ["a", "b"], "")) > 1000


def test_maps_need_a_word_each():
    with pytest.raises(UsageError, match=r"maps of shape \(2, 3, 3\), 1 words: need"):
        plots.attention(torch.zeros(1, 4, 4), torch.zeros(2, 3, 3), ["a"], "")

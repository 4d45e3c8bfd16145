"""Paths: each move in the colour of its kind."""

import numpy as np
import pytest
import torch

from scoresde import plots
from tests.plots.drawing import drawn


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("dim", [1, 2])
def test_paths_of_one_and_many_points(count, dim):
    x = torch.randn(9, count, dim, generator=torch.Generator().manual_seed(0))
    moves = plots.Paths("moves", x, torch.arange(8) % 2, ("predictor", "corrector"))
    figure = plots.trajectories([plots.Paths("all", x), moves], ground=torch.zeros(1, 2) if dim == 2 else None)
    assert [axes.get_title() for axes in figure.axes] == ["all", "moves"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["predictor", "corrector"]
    first, second = ({line.get_color() for line in axes.lines} for axes in figure.axes)
    assert len(first) == min(count, 8)
    assert second == set(plots.COLOURS[:2])
    assert drawn(figure) > 5000


def test_a_predictors_moves_are_those_of_its_kind():
    x = torch.arange(5.0)[:, None, None].expand(5, 1, 2)
    axes = plots.trajectories([plots.Paths("", x, torch.tensor([0, 1, 1, 0]), ("a", "b"))]).axes[0]
    a, b = (line.get_xdata()[np.isfinite(line.get_xdata())].tolist() for line in axes.lines)
    assert (a, b) == ([0, 1, 3, 4], [1, 2, 2, 3])


def test_densities_in_time_and_space_stand_below_the_paths():
    t, x = torch.linspace(0, 1, 6), torch.linspace(-1, 1, 8)
    part = plots.TimeSpace("VP", t, x, torch.rand(8, 6) + 0.1, torch.zeros(6, 2))
    figure = plots.trajectories([plots.Paths("p", torch.randn(4, 2, 2))] * 4, [part] * 3)
    assert len(figure.axes) == 7
    assert drawn(figure) > 5000

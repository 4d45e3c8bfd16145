"""Points: that each is shown, in the colour of its label."""

import math

import numpy as np
import pytest
import torch

from scoresde import plots
from tests.plots.drawing import drawn


def test_scatter_shows_every_point_in_the_colour_of_its_label(device):
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(10) % 3).to(device)
    axes = plots.scatter(points, labels).axes[0]
    assert len(axes.collections) == 3
    shown = np.concatenate([c.get_offsets() for c in axes.collections])
    order = torch.cat([points[labels == k, :2] for k in range(3)]).cpu().numpy()
    np.testing.assert_allclose(shown, order)
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 3


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(1, 2),
        torch.zeros(1, 1),
        torch.linspace(0, 1, 50)[:, None],
        torch.tensor([[math.nan, 0.0], [1.0, math.inf]]),
        torch.tensor([[math.nan], [1.0], [math.inf]]),
    ],
    ids=["one point", "one number", "one coordinate", "not finite", "numbers not finite"],
)
def test_scatter_draws_few_and_broken_points(points):
    assert drawn(plots.scatter(points)) > 1000


def test_a_histogram_counts_every_number():
    axes = plots.scatter(torch.linspace(0, 1, 50)[:, None]).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 50


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 300])
def test_strips_of_points(dim, count):
    clouds = [torch.randn(count, dim) for _ in range(3)]
    figure = plots.point_strips([clouds, clouds], ["x_t", "x_0"], ["1", "2", "3"])
    assert len(figure.axes) == 6
    assert drawn(figure) > 5000

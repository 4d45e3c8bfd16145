"""Pictures of images: where each pixel of a grid lies."""

import math

import numpy as np
import pytest
import torch

from scoresde import UsageError, plots
from tests.plots.drawing import drawn

GREY = 128


def pixels(images, columns, **options):
    return np.asarray(plots.image_grid(images, columns, **options))


def test_a_grid_has_gaps_of_one_pixel_and_empty_cells_are_grey(device):
    images = (torch.arange(5, device=device) / 5).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    grid = pixels(images, 3, enlarge=1)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1)
    expected = np.full((7, 13), GREY)
    for k in range(5):
        top, left = 1 + 3 * (k // 3), 1 + 4 * (k % 3)
        expected[top : top + 2, left : left + 3] = round(255 * k / 5)
    assert (grid == expected).all()


def test_enlarging_repeats_pixels_and_gaps(device):
    images = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)).to(device)
    small, large = pixels(images, 2, gap=2, enlarge=1), pixels(images, 2, gap=2, enlarge=5)
    assert small.shape == (2 * 4 + 2, 2 * 5 + 2)
    assert (large == small.repeat(5, 0).repeat(5, 1)).all()


@pytest.mark.parametrize(("size", "enlarge"), [((8, 8), 6), ((28, 28), 2), ((8, 16), 3), ((64, 64), 1), ((200, 8), 1)])
def test_small_images_are_enlarged_by_a_whole_factor(size, enlarge):
    grid = pixels(torch.zeros(1, 1, *size), 1)
    assert grid.shape == (enlarge * (size[0] + 2), enlarge * (size[1] + 2))


def test_colours_stay_in_their_channels(device):
    images = torch.zeros(1, 3, 1, 1, device=device)
    images[0, 1] = 1
    grid = pixels(images, 1, enlarge=1)
    assert grid.shape == (3, 3, 3)
    assert grid[1, 1].tolist() == [0, 255, 0]
    assert grid[0, 0].tolist() == [GREY] * 3


@pytest.mark.parametrize(
    ("value", "level"), [(math.nan, GREY), (-3.0, 0), (7.0, 255), (math.inf, 255), (-math.inf, 0), (0.2, 51)]
)
def test_values_outside_the_range_are_cut_and_nan_is_grey(value, level):
    assert pixels(torch.full((1, 1, 1, 1), value), 1, enlarge=1)[1, 1] == level


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (3, 2, 8, 8), (3, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(UsageError, match="need \\(N, 1 or 3, H, W\\)"):
        plots.image_grid(torch.zeros(shape), 1)


def test_a_grid_needs_a_column():
    with pytest.raises(UsageError, match="columns=0"):
        plots.image_grid(torch.zeros(1, 1, 2, 2), 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_strips_of_images(channels, shape):
    images = torch.rand(*shape, channels, 4, 4)
    strips = [plots.Strip("a", images, ["row"] * shape[0], ["column"] * shape[1], "note"), plots.Strip("b", images)]
    figure = plots.image_strips(strips)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].images[0].get_array().shape[:2] == (5 * shape[0] + 1, 5 * shape[1] + 1)
    assert drawn(figure) > 2000


def test_strips_need_images():
    with pytest.raises(UsageError, match="images of shape \\(2, 3, 4, 4\\): need \\(rows, columns, 1 or 3, H, W\\)"):
        plots.image_strips([plots.Strip("a", torch.rand(2, 3, 4, 4))])
    with pytest.raises(UsageError, match="strips: there are none"):
        plots.image_strips([])

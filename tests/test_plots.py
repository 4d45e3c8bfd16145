"""Pictures: where each pixel of a grid lies, and that plots show what they are given."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from scoresde import UsageError, plots

GREY = 128


def pixels(images, columns, **options):
    return np.asarray(plots.image_grid(images, columns, **options))


def drawn(figure):
    figure.savefig(file := io.BytesIO(), format="png")
    return len(file.getvalue())


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


def test_score_fields_has_a_panel_for_each_row_and_column():
    side = torch.linspace(-2, 2, 24)
    xy = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    log_densities = [-(xy**2).sum(-1) / 2, -(xy**2).sum(-1) / 8, -(xy**2).sum(-1) / 18]
    fields = [[-xy, -xy / 4, -xy / 9], [torch.zeros_like(xy), xy, -2 * xy]]
    figure = plots.score_fields([xy] * 3, log_densities, fields, ["exact", "learned"], ["t = 0.1", "t = 0.5", "t = 1"])
    assert len(figure.axes) == 6
    assert [a.get_title() for a in figure.axes[:3]] == ["t = 0.1", "t = 0.5", "t = 1"]
    assert figure.axes[0].get_ylabel().startswith("exact")
    assert figure.axes[3].get_ylabel().startswith("learned")
    assert drawn(figure) > 5000


def test_score_arrows_point_along_the_field():
    side = torch.linspace(-1, 1, 20)
    xy = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    field = torch.stack([torch.full((20, 20), 3.0), torch.full((20, 20), -3.0)], -1)
    axes = plots.score_fields([xy], [-(xy**2).sum(-1)], [[field]], ["row"], ["column"]).axes[0]
    (arrows,) = [c for c in axes.collections if hasattr(c, "U")]
    np.testing.assert_allclose(arrows.U, math.sqrt(0.5), rtol=1e-5)
    np.testing.assert_allclose(arrows.V, -math.sqrt(0.5), rtol=1e-5)


@pytest.mark.parametrize(
    "errors", [{"a": [1.0, 0.1], "b": [math.nan, 0.2]}, {"a": [1e-5, 1e-7]}, {"a": [math.nan] * 2}]
)
def test_error_curves_show_what_is_there(errors):
    figure = plots.error_curves([5, 10], errors, 1e-4, ("evaluations", "error"))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == list(errors)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("evaluations", "error")
    shown = [v for values in errors.values() for v in values if v > 0]
    assert all(axes.get_ylim()[0] <= v <= axes.get_ylim()[1] for v in shown)
    assert drawn(figure) > 5000

"""Scores and densities: arrows along the field, holes left out."""

import math

import numpy as np
import pytest
import torch

from scoresde import UsageError, plots
from tests.plots.drawing import drawn, plane


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


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_a_field_with_holes_is_drawn_around_them(hole):
    xy = plane(20)
    field, log_density = -xy.clone(), -(xy**2).sum(-1)
    field[5:15], log_density[10:12] = hole, hole
    axes = plots.score_fields([xy], [log_density], [[field]], ["row"], ["column"]).axes[0]
    (arrows,) = [c for c in axes.collections if hasattr(c, "U")]
    assert arrows.Umask.sum() == 200
    assert np.isfinite(arrows.U).all()
    assert drawn(axes.figure) > 5000


def test_arrays_without_a_finite_number_are_refused():
    xy, nothing = plane(20), torch.full((20, 20), math.nan)
    with pytest.raises(UsageError, match=r"score, learned of shape .*holds no finite number to draw"):
        plots.score_fields([xy], [-(xy**2).sum(-1)], [[nothing[..., None].expand(-1, -1, 2)]], ["learned"], ["t"])
    with pytest.raises(UsageError, match="density of shape \\(20, 20\\): holds no finite number"):
        plots.densities(xy, [nothing], ["density"])
    with pytest.raises(UsageError, match="paths of shape"):
        plots.trajectories([plots.Paths("paths", torch.full((3, 1, 2), math.nan))])


@pytest.mark.parametrize("dim", [1, 2])
def test_densities_and_their_difference(dim):
    grid = plane(12) if dim == 2 else torch.linspace(-2, 2, 30)[:, None]
    log_p = -grid.square().sum(-1)
    figure = plots.densities(grid, [log_p + 0.3, log_p], ["learned", "exact"], "difference")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == (["learned", "exact", "difference", "", ""] if dim == 2 else [""])
    assert drawn(figure) > 5000
    assert len(plots.densities(grid, [log_p], ["alone"]).axes) == dim  # with the bar of its colours


def test_scores_on_a_line():
    x = [torch.linspace(-1, 1, 20)] * 2
    figure = plots.score_curves(x, [-v.square() for v in x], [[-v for v in x], x], ["learned", "exact"], ["a", "b"])
    panel = figure.axes[0]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), -x[0].numpy())
    assert panel.get_xlabel() == "$x$ (data units)"
    assert drawn(figure) > 5000

"""Pictures of guidance: each weight and way is shown, and noise levels with guidance are shaded."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import plots
from tests.plots.drawing import drawn, plane

R = torch.logspace(-2, 1, 8)


def by_level(interval=None, told=True):
    curves = {"learned": R, "exact": 2 * R}
    return plots.ByLevel(R, curves, curves if told else {}, 1.1 if told else None, interval)


@pytest.mark.parametrize("density", [True, False])
@pytest.mark.parametrize("count", [1, 200])
def test_points_over_a_density_or_over_others(density, count):
    clouds = [torch.randn(count, 2, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    clouds[0][0] = math.nan if count > 1 else 0.0
    ground = plots.Ground(plane(9), -plane(9).square().sum(-1)) if density else plots.Ground(torch.randn(30, 2))
    rows = [plots.GuidedRow(f"w = {w}", ground, clouds, ["1", "2.5"]) for w in (1, 2, 4)]
    figure = plots.guided_points(rows, ["a", "b"], by_level(), ("x", "y"), "title")
    assert len(figure.axes) == 3 * 2 + 2
    assert [axes.texts[0].get_text() for axes in figure.axes[:2]] == ["1", "2.5"]
    limits = {axes.get_xlim() for axes in figure.axes[:6]}
    assert len(limits) == 1
    assert drawn(figure) > 10_000


def test_points_without_curves():
    row = plots.GuidedRow("w = 1", plots.Ground(torch.zeros(1, 2)), [torch.zeros(1, 2)], [""])
    figure = plots.guided_points([row], ["a"], None, ("x", "y"))
    assert len(figure.axes) == 1
    assert drawn(figure) > 5000


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_each_weight(channels):
    grids = [torch.rand(3, 4, channels, 8, 8) for _ in range(2)]
    figure = plots.guided_images(["w = 1", "w = 2"], grids, ["0", "1", "2"], by_level(told=False))
    assert [axes.get_title() for axes in figure.axes] == ["w = 1", "w = 2", "difference that is weighted"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert len(plots.guided_images(["w = 1"], grids[:1], [], None).axes) == 1
    assert drawn(figure) > 5000


def test_the_noise_levels_with_guidance_are_shaded():
    grid = [torch.rand(1, 1, 1, 8, 8)]
    figure = plots.guided_images(["w = 2"], grid, [], by_level(interval=(0.1, 2.0)))
    for axes in figure.axes[1:]:
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert (band.x0, band.x1) == pytest.approx((0.1, 2.0))
    figure = plots.guided_images(["w = 2"], grid, [], by_level())
    assert not any(len(axes.patches) for axes in figure.axes[1:])

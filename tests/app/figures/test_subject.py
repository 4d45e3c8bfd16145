"""What a picture is of: the plane that data are shown in."""

from __future__ import annotations

import torch

from scoresde import VPSDE
from scoresde.app.figures.subject import Plane
from scoresde.data import ArrayData


def test_a_plane_shows_points_where_they_lie():
    x = torch.randn(200, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for data in (ArrayData(x), ArrayData(x.flatten(1)[:, :2])):
        plane = Plane(data)
        alpha = torch.tensor(0.7)
        level = VPSDE().level(torch.tensor(0.3))
        grid = plane.grid(5, level)
        points = plane.points(grid, alpha)
        assert points.shape == (25, *data.shape)
        torch.testing.assert_close(plane.coordinates(points, alpha), grid.reshape(-1, 2), rtol=1e-4, atol=1e-5)

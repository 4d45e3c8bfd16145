"""Attributes of digits: of drawn shapes they are the known ones, and of other sizes of the image the same."""

import math

import pytest
import torch

from scoresde import UsageError
from scoresde.data.strokes import EDGES, HOLES, UPRIGHT, boundary, grades, measure_strokes, quantile_edges


def canvas(side):
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    return place[None, :].expand(side, side), place[:, None].expand(side, side)


def bar(width, length, shear, x=0.0, y=0.0, side=28):
    """A stroke with round ends, whose ends are `length` apart in y, with smooth edges."""
    px, py = canvas(side)
    px, py = px - x, py - y
    end_x, end_y = -shear * length / 2, length / 2
    along = ((px * end_x + py * end_y) / (end_x**2 + end_y**2)).clamp(-1, 1)
    distance = torch.hypot(px - along * end_x, py - along * end_y)
    return (0.5 + width / 2 - distance).clamp(0, 1)[None, None]


def ring(width, radius, side=28):
    px, py = canvas(side)
    return (0.5 + width / 2 - (torch.hypot(px, py) - radius).abs()).clamp(0, 1)[None, None]


ONE = torch.tensor([1])


@pytest.mark.parametrize("width", [2.0, 3.0, 4.5])
@pytest.mark.parametrize("shear", [-0.4, 0.0, 0.3])
def test_a_stroke_has_its_thickness_slant_and_size(width, shear):
    found = measure_strokes(bar(width, 14, shear), ONE)
    height = 14 + width
    torch.testing.assert_close(found.size.item() * 28, height, rtol=0, atol=0.51)  # half a row
    blur = 0.35 if width < 3 else 0.1  # pixels by which a thin stroke widens
    torch.testing.assert_close(found.thickness.item() * height, width, rtol=0.02, atol=blur)
    own = 14**2 / 12 / (14**2 / 12 + width**2 / 16)  # the pen has no slant; both ends of the stroke are round
    torch.testing.assert_close(found.slant.item() + UPRIGHT[1], shear * own, rtol=0.1, atol=0.005)


@pytest.mark.parametrize("width", [2.0, 3.0, 4.0])
def test_a_ring_has_the_thickness_of_its_stroke(width):
    found = measure_strokes(ring(width, 8), torch.tensor([0]))
    height = 16 + width
    torch.testing.assert_close(found.thickness.item() * height, width, rtol=0.02, atol=0.25)
    torch.testing.assert_close(found.size.item() * 28, height, rtol=0, atol=0.51)  # half a row
    torch.testing.assert_close(found.slant.item() + UPRIGHT[0], 0.0, rtol=0, atol=1e-9)


def test_position_is_the_mean_place():
    at = measure_strokes(bar(3, 10, 0, x=4.0, y=-3.0), ONE)
    assert at.x.item() * 28 == pytest.approx(4.0, abs=1e-6)
    assert at.y.item() * 28 == pytest.approx(-3.0, abs=1e-6)


def test_what_is_measured_does_not_depend_on_the_size_of_the_image():
    small = measure_strokes(bar(3, 12, 0.2), ONE)
    large = measure_strokes(bar(6, 24, 0.2, side=56), ONE)
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.005)


def test_the_boundary_of_a_disc_is_its_circumference():
    for radius in (4.0, 7.3):
        disc = bar(2 * radius, 1e-6, 0)[0]
        torch.testing.assert_close(boundary(disc).item(), 2 * math.pi * radius, rtol=0.01, atol=0)


def test_an_empty_image_is_finite():
    assert all(part.isfinite().all() for part in measure_strokes(torch.zeros(2, 1, 8, 8), torch.tensor([3, 8])))


def test_measuring_is_smooth_in_the_grey_levels():
    ink = bar(3, 12, 0.2)
    noisy = (ink + 0.02 * torch.rand(ink.shape, generator=torch.Generator().manual_seed(0), dtype=ink.dtype)) * 0.98
    before, after = measure_strokes(ink, ONE), measure_strokes(noisy, ONE)
    for one, other, name in zip(before, after, before._fields, strict=True):
        assert abs(one - other) < 0.15 * (EDGES[name][-1] - EDGES[name][0]), name


def test_grades_are_counted_from_the_middle():
    assert grades(torch.tensor([-9.0, 0.5, 1.5, 2.5, 3.5, 4.5, 9.0]), (0, 1, 2, 3, 4, 5)).tolist() == [
        -2, -2, -1, 0, 1, 2, 2,
    ]  # fmt: skip
    edges = quantile_edges(torch.arange(100.0), 5)
    assert torch.bincount(grades(torch.arange(100.0), edges) + 2).tolist() == [20] * 5


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match=r"ink of shape \(2, 3, 8, 8\): need grey images"):
        measure_strokes(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="need 2 digits, 0 to 9"):
        measure_strokes(torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]))
    assert len(HOLES) == len(UPRIGHT) == 10

"""Obedience to captions: of attributes that are uniform within their grades it has a closed form."""

import math

import pytest
import torch

from scoresde import UsageError
from scoresde.data.wording import Description
from scoresde.metrics.prompts import obedience


def bars(widths, places):
    """Upright strokes of some widths at some places, `(N, 1, 32, 32)`."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    x = x - 15.5 - places[:, None, None]
    y = (y - 15.5).abs() - 7
    distance = torch.hypot(x, y.clamp(min=0).expand_as(x))
    return (0.5 + widths[:, None, None] / 2 - distance).clamp(0, 1)[:, None]


def test_images_that_obey_reach_the_ceiling():
    places = torch.linspace(-4.5, 4.5, 90) * (1 - 1 / 90)
    asked = [Description(1, position=(int(part), 0)) for part in (places / 3).round()]
    found = obedience(bars(torch.full((90,), 3.0), places), asked, torch.ones(90))
    assert found.agreement == 1
    assert found.x == pytest.approx(math.sqrt(1 - 1 / 9), abs=1e-3)  # three grades of a uniform attribute
    assert all(math.isnan(value) for value in (found.thickness, found.slant, found.size, found.y))


def test_only_what_is_asked_for_counts():
    widths = torch.tensor([2.0, 4.0, 6.0, 2.0, 6.0])
    asked = [Description(1, thickness=grade) for grade in (-2, 0, 2, None, None)]
    found = obedience(bars(widths, torch.zeros(5)), asked, torch.tensor([1, 1, 1, 7, 1]))
    assert found.agreement == pytest.approx(0.8)
    assert found.thickness > 0.98
    opposite = [Description(1, thickness=grade) for grade in (2, 0, -2, None, None)]
    assert obedience(bars(widths, torch.zeros(5)), opposite, torch.ones(5)).thickness == pytest.approx(-found.thickness)


def test_what_cannot_be_judged_is_refused():
    ink = torch.zeros(2, 1, 8, 8)
    with pytest.raises(UsageError, match="of 2, 1 and 2 samples; need as many"):
        obedience(ink, [Description(1)], torch.ones(2))
    with pytest.raises(UsageError, match="1 of 2 name no digit"):
        obedience(ink, [Description(1), Description(size=0)], torch.ones(2))

"""Retrieval in groups: exact shares of similarities that are set by hand."""

from __future__ import annotations

import pytest
import torch

from scoresde.metrics.retrieval import _groups, retrieval_at_1
from tests.text import captioned


def numbers(*which):
    return torch.tensor(which)[:, None]


@pytest.mark.parametrize(
    ("captions", "size", "expected"),
    [
        ((5, 6, 7, 8), 2, [[0, 1], [2, 3]]),
        ((5, 5, 6, 7, 6), 2, [[0, 2], [1, 4]]),  # 3 fills no group
        ((5, 5, 6, 5, 6), 100, [[0, 2], [1, 4]]),  # fewer captions than a group has places
        ((5, 5, 5), 10, [[0], [1], [2]]),
    ],
)
def test_no_caption_is_twice_in_a_group(captions, size, expected):
    assert [group.tolist() for group in _groups(numbers(*captions), size)] == expected


def test_by_chance_it_is_one_in_the_group():
    """An image encoder that sees nothing: every image is nearest to the same caption, and ties go to the first."""
    model = captioned.model()
    model.network.from_image.weight.data.zero_()
    raw, which = captioned.images(900)
    table = captioned.table(model)
    found = retrieval_at_1(model, raw, table["ids"][which], table["mask"][which], group=9)
    assert found.group == 9
    assert found.pairs % 9 == 0
    assert found.caption == pytest.approx(1 / 9)
    assert found.sample == pytest.approx(1 / 9)


def test_the_two_directions_are_told_apart():
    """Two captions that read alike: both samples find the first, and both captions their own sample."""
    model = captioned.model()
    similarities = torch.tensor([[0.9, 0.1], [0.8, 0.2]])

    class Embedded:
        images, texts, scale = similarities, torch.eye(2), torch.ones(())

    model.embed = lambda raw, cond: Embedded
    found = retrieval_at_1(model, torch.zeros(2, 1, 10, 10), numbers(2, 3), torch.ones(2, 1, dtype=torch.bool))
    assert found == (0.5, 1.0, 2, 2)

"""The test of copying."""

import pytest
import torch

from scoresde.metrics import FeatureSet, copying
from scoresde.metrics.nearest import copies, nearest_distances


def normal(count, seed):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def features(x, source):
    return FeatureSet.of(x, "normal", source)


def test_nearest_neighbours():
    train = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = nearest_distances(torch.tensor([[0.0, 1.0], [3.0, 4.0], [6.0, 8.0]]), train.split(1))
    assert found.tolist() == pytest.approx([1.0, 0.0, 5.0])
    assert copies(torch.tensor([0.0, 5.0]), torch.arange(101.0)) == 0.5


def test_copies_are_found_and_new_samples_are_not_called_copies():
    train = features(normal(500, 0), "train")
    held_out = features(normal(400, 1), "held out")
    new, share = copying(features(normal(400, 2), "new"), held_out, train)
    assert new.low < 0.5 < new.high
    assert share < 0.04
    copied, share = copying(features(normal(500, 0)[:400] + 1e-3, "copies"), held_out, train)
    assert copied.value > 0.99
    assert share > 0.9
    half = torch.cat([normal(500, 0)[:200] + 1e-3, normal(200, 3)])
    partly, share = copying(features(half, "half"), held_out, train)
    assert partly.value == pytest.approx(0.75, abs=0.05)  # half of 1, and half of 1/2
    assert share == pytest.approx(0.5, abs=0.05)

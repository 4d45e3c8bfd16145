"""Precision, recall, density and coverage on mixtures with modes that are left out."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics.manifold import manifolds

MEANS = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0], [50.0, 50.0]])


def draw(modes, count, seed):
    """As many points of each mode."""
    mode = torch.tensor(modes).repeat(count // len(modes))
    return MEANS[mode] + torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("modes", "precision", "recall"),
    [([0, 1, 2, 3], 1.0, 1.0), ([0, 1], 1.0, 0.5), ([0, 1, 2, 4], 0.75, 0.75), ([4, 4], 0.0, 0.0)],
)
def test_modes_that_are_left_out_and_that_are_made_up(modes, precision, recall):
    found = manifolds(draw(modes, 2000, 1), draw([0, 1, 2, 3], 2000, 2), 5, 5)
    assert found.precision.mean().item() == pytest.approx(precision, abs=0.01)
    assert found.recall.mean().item() == pytest.approx(recall, abs=0.01)
    assert found.coverage.mean().item() == pytest.approx(recall, abs=0.04)  # a ball is empty now and then
    # of twice as many samples in a mode, each lies in as many balls of the real ones as before
    assert found.density.mean().item() == pytest.approx(precision, abs=0.05)


def test_small_sets_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # radii to the first neighbour: 1, 1, 2
    samples = torch.tensor([[0.5], [4.5], [9.0]])
    found = manifolds(samples, real, 1, 1)
    assert found.precision.tolist() == [1, 1, 0]
    assert found.density.tolist() == [2, 1, 0]
    assert found.recall.tolist() == [1, 1, 1]  # radii of the samples: 4, 4, 4.5
    assert found.coverage.tolist() == [1, 1, 1]


def test_too_few_are_refused():
    with pytest.raises(UsageError, match=r"samples of shape \(5, 2\): need more than 5"):
        manifolds(torch.zeros(5, 2), torch.zeros(9, 2))

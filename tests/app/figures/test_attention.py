"""Maps of attention: means over heads, layers and evaluations that sum to 1, without those that have no prompt."""

import pytest
import torch

from scoresde import UsageError
from scoresde.app.figures.attention import AttentionMaps, grid_of


def weights_of(batch, heads, places, words, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, places, words, generator=generator).softmax(3)


def test_maps_of_all_words_are_one_at_each_place():
    maps = AttentionMaps((8, 12), 4)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for seed, places in enumerate((96, 24, 6)):
        maps(weights_of(1, 2, places, 4, seed), mask)
    torch.testing.assert_close(maps.mean().sum(0), torch.ones(8, 12))


def test_they_are_the_mean_over_heads_and_calls():
    maps = AttentionMaps((2, 3), 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    both = [weights_of(1, 2, 6, 3, seed) for seed in (0, 1)]
    for weights in both:
        maps(weights, mask)
    expected = torch.stack(both).mean((0, 1, 2)).mT.reshape(3, 2, 3)
    torch.testing.assert_close(maps.mean(), expected)


def test_samples_without_the_prompt_do_not_count():
    """Guidance evaluates the network with and without it, in one batch or in two."""
    weights = weights_of(2, 2, 6, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    together, apart = AttentionMaps((2, 3), 3), AttentionMaps((2, 3), 3)
    together(weights, mask)
    apart(weights[1:], mask[1:])
    apart(weights, None)
    assert apart.count == 0
    apart(weights[:1], mask[:1])
    assert torch.equal(together.mean(), apart.mean())


def test_a_network_that_attends_to_nothing_is_named():
    with pytest.raises(UsageError, match="attended to no token"):
        AttentionMaps((2, 2), 3).mean()


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(36, (6, 6), (6, 6)), (96, (24, 16), (12, 8)), (12, (5, 7), (3, 4)), (8, (32, 16), (4, 2)), (7, (7, 1), (7, 1))],
)
def test_places_have_the_shape_of_the_sample(count, size, expected):
    assert grid_of(count, size) == expected

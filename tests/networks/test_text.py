"""The networks that read: padding changes nothing, order does, and both encoders meet in one space."""

from __future__ import annotations

import math

import pytest
import torch

from scoresde import UsageError
from scoresde.networks import ContrastiveNetwork, ImageEncoder, TextTransformer

WORDS = ("<pad>", "<unknown>", "a", "bold", "seven", "thin")


def reader(**options):
    """A transformer whose every weight is drawn, so that no part of it is silent."""
    torch.manual_seed(0)
    network = TextTransformer(WORDS, width=8, num_heads=2, max_length=6, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.double()


def test_what_pads_changes_nothing():
    """Neither how much, nor what stands there."""
    network = reader()
    ids = torch.tensor([[2, 3, 4]])
    plain = network(ids, torch.ones(1, 3, dtype=torch.bool))
    mask = torch.tensor([[True, True, True, False, False]])
    for filler in (0, 5):
        states, pooled = network(torch.tensor([[2, 3, 4, filler, filler]]), mask)
        torch.testing.assert_close(states[:, :3], plain.states, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(pooled, plain.pooled, rtol=1e-12, atol=1e-12)
        assert torch.equal(states[:, 3:], torch.zeros(1, 2, 8, dtype=torch.float64))


def test_a_text_without_words_is_zero():
    states, pooled = reader()(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(states, torch.zeros(2, 3, 8, dtype=torch.float64))
    assert torch.equal(pooled, torch.zeros(2, 8, dtype=torch.float64))


def test_each_word_sees_all_others_and_their_order():
    network = reader()
    ids = torch.tensor([[2, 3, 4]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    states = network(ids, mask).states
    last_changed = network(torch.tensor([[2, 3, 5]]), mask).states
    assert (states - last_changed)[0, 0].norm() > 1e-3  # not causal
    assert (network(ids.flip(1), mask).pooled - network(ids, mask).pooled).norm() > 1e-3


def test_a_text_that_is_too_long_is_named():
    with pytest.raises(UsageError, match=r"ids of shape \(1, 7\): this network takes 6 words; cut them"):
        reader()(torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 6, "num_heads": 4}, "width=6 of TextTransformer: need a multiple of num_heads=4"),
        ({"depth": 0}, "depth=0 of TextTransformer: need at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 of TextTransformer: need 0 <= dropout < 1"),
        ({"words": ("<pad>",)}, r"words=\('<pad>',\) of TextTransformer: need a vocabulary"),
    ],
)
def test_mistakes_are_named(options, said):
    with pytest.raises(UsageError, match=said):
        TextTransformer(**{"words": WORDS} | options)


@pytest.mark.parametrize("sizes", [(9,), (7, 12), (1, 1), (5, 3, 6)])
def test_samples_of_any_sizes(sizes):
    encoder = ImageEncoder(2, width=5, channels=4, depth=2, dims=len(sizes))
    assert encoder(torch.randn(3, 2, *sizes)).shape == (3, 5)


def test_the_image_encoder_tells_left_from_right():
    encoder = ImageEncoder(1, width=5, channels=4, depth=2).double()
    image = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    image[..., 6:10, 2:6] = 1
    assert (encoder(image) - encoder(image.flip(3))).norm() > 1e-3


def test_both_meet_in_one_space():
    """Vectors of length 1, and a scale that begins as Radford et al. do and never passes 100."""
    network = ContrastiveNetwork(reader().float(), ImageEncoder(1, channels=4, depth=1), size=3)
    ids = torch.tensor([[2, 4], [3, 4]])
    images, texts, scale = network(torch.randn(2, 1, 4, 4), ids, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(scale.item(), 1 / 0.07, rtol=1e-6, atol=0)
    network.log_scale.data.fill_(math.log(1000.0))
    torch.testing.assert_close(network(torch.randn(2, 1, 4, 4), ids, ids > 0).scale.item(), 100.0, rtol=1e-6, atol=0)

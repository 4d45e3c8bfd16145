"""An own encoder says what it cuts and does not know; its states are those of its network."""

from __future__ import annotations

import torch

from scoresde.text import OwnTextEncoder, Vocabulary
from tests.text import captioned


def test_the_states_are_those_of_the_network():
    model = captioned.model()
    encoder = OwnTextEncoder(model, "of a test")
    assert (encoder.context_channels, encoder.max_length, encoder.digest) == (16, 12, "of a test")
    cond = encoder.encode([captioned.TEXTS[3], "", "a large square"])
    ids, mask = Vocabulary(model.text.words).ids([captioned.TEXTS[3], "a large square"], 12)
    expected = model.text(ids, mask).states
    torch.testing.assert_close(cond["tokens"][[0, 2]], expected.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(cond["mask"][[0, 2]], mask)
    assert not cond["mask"][1].any()
    assert not cond["tokens"].requires_grad


def test_notes():
    encoder = OwnTextEncoder(captioned.model(max_length=4), "of a test")
    assert encoder.notes(captioned.TEXTS[:1]) == [
        "'a small square, high on the left': was cut, it has 8 tokens and the text encoder takes 4"
    ]
    assert encoder.notes(["A SMALL circle"]) == [
        "'A SMALL circle': holds what the text encoder does not know: 'circle'"
    ]

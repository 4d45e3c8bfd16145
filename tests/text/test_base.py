"""What every text encoder does with texts: padding, batches, the null text, and what it says of them."""

from __future__ import annotations

import pytest
import torch

from scoresde import UsageError
from scoresde.text import TextEncoder, Tokenised, base


class Letters(TextEncoder):
    """A token a letter, whose vector is its place in the alphabet and the number of letters of its text."""

    context_channels = 2
    max_length = 6
    digest = "letters"

    def tokenise(self, text):
        kept = text[: self.max_length]
        unknown = tuple(letter for letter in kept if not letter.islower())
        return Tokenised([max(0, ord(letter) - 96) for letter in kept], len(text), unknown)

    def states(self, ids, mask):
        assert ids.shape[0] <= base.BATCH
        assert mask.any(1).all()
        assert not torch.is_grad_enabled()
        return torch.stack([ids.double(), mask.sum(1, keepdim=True).expand_as(ids).double()], 2)


def test_texts_of_different_lengths():
    cond = Letters().encode(["abc", "", "e"])
    expected = torch.tensor([[[1, 3], [2, 3], [3, 3]], [[0, 0]] * 3, [[5, 1], [0, 0], [0, 0]]])
    assert torch.equal(cond["tokens"], expected.float())
    assert torch.equal(cond["mask"], torch.tensor([[True] * 3, [False] * 3, [True, False, False]]))


def test_the_empty_text_alone():
    cond = Letters().encode(["", "  "])
    assert torch.equal(cond["tokens"], torch.zeros(2, 1, 2))
    assert torch.equal(cond["mask"], torch.zeros(2, 1, dtype=torch.bool))


def test_many_texts_come_back_in_their_order():
    texts = ["abcdef"[: i % 7] for i in range(3 * base.BATCH)]
    cond = Letters().encode(texts)
    assert cond["mask"].sum(1).tolist() == [len(text) for text in texts]
    for text, tokens in zip(texts, cond["tokens"], strict=True):
        alone = Letters().encode([text])["tokens"][0]
        assert torch.equal(tokens[: len(alone)], alone)
        assert not tokens[len(alone) :].any()


def test_notes_on_what_is_cut_and_unknown():
    notes = Letters().notes(["abc", "", "abcdefgh", "aB%B\nc"])
    assert notes == [
        "'abcdefgh': was cut, it has 8 tokens and the text encoder takes 6",
        "'aB%B c': holds what the text encoder does not know: 'B', '%', '\\n'",
    ]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one", r"texts='one': is one text; give a list of texts, such as \['one'\]"),
        ([], "texts: there are none; give at least one"),
        (["a", 3], "texts: hold 3, a int; need texts"),
    ],
)
def test_mistakes_are_named(texts, said):
    for method in (Letters().encode, Letters().notes):
        with pytest.raises(UsageError, match=said):
            method(texts)

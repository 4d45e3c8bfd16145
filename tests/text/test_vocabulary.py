"""A vocabulary holds the words of its captions, and says which it does not know."""

from __future__ import annotations

import pytest
import torch

from scoresde import UsageError
from scoresde.text import Tokenised, Vocabulary
from scoresde.text.vocabulary import pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bold Seven, slanted.", ["a", "bold", "seven", ",", "slanted", "."]),
        ("it's 3.5 or 12", ["it's", "3.5", "or", "12"]),
        ("x1_y!?", ["x", "1", "_", "y", "!", "?"]),
        ("ÉTÉ ﬁne", ["été", "fine"]),  # a ligature is two letters
        ("<pad>", ["<", "pad", ">"]),  # what a user writes is never the padding itself
        ("  \n", []),
    ],
)
def test_pieces(text, expected):
    assert pieces(text) == expected


def test_words_are_sorted_and_numbered_from_two():
    vocabulary = Vocabulary.of(["a thin seven", "A bold seven"])
    assert vocabulary.words == ("<pad>", "<unknown>", "a", "bold", "seven", "thin")
    assert Vocabulary.of(["seven bold A", "thin"]) == vocabulary


def test_the_most_frequent_words_are_kept():
    """Of equally frequent ones those that come first in the alphabet."""
    assert Vocabulary.of(["b b c a", "c"], max_words=2).words[2:] == ("b", "c")
    assert Vocabulary.of(["b a c"], max_words=2).words[2:] == ("a", "b")


def test_texts_become_numbers():
    vocabulary = Vocabulary.of(["a thin seven", "a bold seven"])
    assert vocabulary.tokenise("A thin zebra seven", 3) == Tokenised([2, 5, 1], 4, ("zebra",), ("a", "thin", "zebra"))
    ids, mask = vocabulary.ids(["seven", "a bold seven", ""], 8)
    assert torch.equal(ids, torch.tensor([[4, 0, 0], [2, 3, 4], [0, 0, 0]]))
    assert torch.equal(mask, torch.tensor([[True, False, False], [True, True, True], [False, False, False]]))


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="captions: hold no word"):
        Vocabulary.of(["", " "])
    with pytest.raises(UsageError, match=r"words=\('a', 'b'\)...: need '<pad>' and '<unknown>' at the beginning"):
        Vocabulary(("a", "b"))
    with pytest.raises(UsageError, match="words: one is there twice"):
        Vocabulary(("<pad>", "<unknown>", "a", "a"))

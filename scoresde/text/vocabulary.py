"""A vocabulary of words, made from captions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from scoresde.errors import require
from scoresde.text.base import Tokenised, padded

PAD = "<pad>"
UNKNOWN = "<unknown>"
MAX_WORDS = 30_000  # about as many as BERT has; rarer words are unknown
PIECE = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+(?:[.,]\d+)*|[^\w\s]|_")  # a word, a number, or one other character


@final
@dataclass(frozen=True)
class Vocabulary:
    """Words with their numbers.

    Attributes:
        words: `<pad>`, `<unknown>`, and the words that are known, in alphabetical order; a word's place is its number.

    Raises:
        UsageError: for words without these two at the beginning, or with one twice.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        require(
            tuple(self.words[:2]) == (PAD, UNKNOWN),
            f"words={tuple(self.words[:2])!r}...: need {PAD!r} and {UNKNOWN!r} at the beginning; make them with "
            "Vocabulary.of(captions)",
        )
        require(len(set(self.words)) == len(self.words), "words: one is there twice; make them with Vocabulary.of")

    @classmethod
    def of(cls, captions: Iterable[str], max_words: int = MAX_WORDS) -> Vocabulary:
        """The vocabulary of captions: their most frequent words, `max_words` at most, all if there are fewer."""
        counts = Counter(piece for caption in captions for piece in pieces(caption))
        require(len(counts) > 0, "captions: hold no word; give captions that say what the samples are")
        known = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
        return cls((PAD, UNKNOWN, *sorted(known)))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def tokenise(self, text: str, max_length: int) -> Tokenised:
        """The numbers of a text's words; those behind the first `max_length` are left out."""
        found = pieces(text)
        kept = found[:max_length]
        unknown = tuple(piece for piece in kept if piece not in self._numbers)
        return Tokenised([self._numbers.get(piece, 1) for piece in kept], len(found), unknown, tuple(kept))

    def ids(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """The numbers of the words of texts, `(N, L)`, and the mask `(N, L)`, False where a text is shorter.

        L is the length of the longest text, `max_length` at most and 1 at least.
        """
        return padded([self.tokenise(text, max_length).ids for text in texts])


def pieces(text: str) -> list[str]:
    """The words, the numbers and the punctuation of a text, in lower case."""
    return PIECE.findall(unicodedata.normalize("NFKC", text).lower())

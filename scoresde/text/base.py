"""What turns texts into the tokens that a network attends to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from scoresde.errors import UsageError, require

BATCH = 64  # texts that are encoded at a time


class Tokenised(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids: their numbers, at most `max_length` of the encoder.
        length: how many there were before the text was cut.
        unknown: the parts of the text that the encoder does not know, in the order of the text.
        words: the tokens in letters, for people to read; empty if the encoder does not say.
    """

    ids: list[int]
    length: int
    unknown: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


class TextEncoder(ABC):
    """An encoder of texts: a vector for each token, which a network with a context attends to.

    Attributes:
        context_channels: size of the vector of a token.
        max_length: tokens that it takes; longer texts are cut.
        digest: a checksum of everything that the vectors depend on, but for the texts.
    """

    context_channels: int
    max_length: int
    digest: str

    @abstractmethod
    def tokenise(self, text: str) -> Tokenised:
        """The tokens of a text that is not empty."""

    @abstractmethod
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The vectors of tokens, `(B, L, context_channels)`.

        Args:
            ids: the numbers of the tokens `(B, L)`, 0 where a text is shorter.
            mask: `(B, L)`, False where a text is shorter; each text has at least one token. The vectors of tokens do
                not depend on what stands there.
        """

    @final
    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of texts: "tokens" `(N, L, context_channels)`, float32, and "mask" `(N, L)`, on the host.

        L is the length of the longest of the texts, at least 1. Where a text is shorter, the mask is False and the
        vectors are 0. An empty text, or one of spaces only, is the null text: its mask is False everywhere.

        Raises:
            UsageError: for no texts, or what is not a text.
        """
        ids = [self.tokenise(text).ids if text.strip() else [] for text in checked(texts)]
        length = max(1, *map(len, ids))
        tokens = torch.zeros(len(ids), length, self.context_channels)
        mask = torch.zeros(len(ids), length, dtype=torch.bool)
        order = sorted((i for i, found in enumerate(ids) if found), key=lambda i: len(ids[i]))  # little is padded
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            numbers, kept = padded([ids[i] for i in places])
            with torch.no_grad():
                states = self.states(numbers, kept).float().cpu()
            tokens[places, : states.shape[1]] = states.masked_fill(~kept[..., None], 0)
            mask[places, : kept.shape[1]] = kept
        return {"tokens": tokens, "mask": mask}

    @final
    def notes(self, texts: Sequence[str]) -> list[str]:
        """A line for each text that is cut, and for each that holds what the encoder does not know."""
        found = []
        for text in checked(texts):
            if not text.strip():
                continue
            tokens = self.tokenise(text)
            if tokens.length > len(tokens.ids):
                found.append(
                    f"{shortened(text)}: was cut, it has {tokens.length} tokens and the text encoder takes "
                    f"{self.max_length}"
                )
            if tokens.unknown:
                parts = ", ".join(repr(part) for part in dict.fromkeys(tokens.unknown))
                found.append(f"{shortened(text)}: holds what the text encoder does not know: {parts}")
        return found


def checked(texts: Sequence[str]) -> list[str]:
    """The texts as a list; raises `UsageError` for what is not one."""
    require(not isinstance(texts, str), f"texts={texts!r}: is one text; give a list of texts, such as [{texts!r}]")
    texts = list(texts)
    require(len(texts) > 0, "texts: there are none; give at least one")
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise UsageError(f"texts: hold {wrong!r}, a {type(wrong).__name__}; need texts")
    return texts


def padded(ids: Sequence[Sequence[int]], length: int = 1) -> tuple[Tensor, Tensor]:
    """Numbers of tokens as one tensor `(N, L)`, 0 behind the shorter ones, and the mask `(N, L)` of those that count.

    Args:
        ids: the numbers of each text.
        length: L is at least this.
    """
    length = max([length, *map(len, ids)])
    numbers = torch.zeros(len(ids), length, dtype=torch.long)
    mask = torch.zeros(len(ids), length, dtype=torch.bool)
    for row, found in enumerate(ids):
        numbers[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        mask[row, : len(found)] = True
    return numbers, mask


def shortened(text: str, size: int = 60) -> str:
    """A text for a message, in quotes and in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= size else line[: size - 3] + "...")

"""Text encoders that this library trained."""

from __future__ import annotations

from typing import final

from torch import Tensor

from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.text.base import TextEncoder, Tokenised
from scoresde.text.vocabulary import Vocabulary


@final
class OwnTextEncoder(TextEncoder):
    """The transformer over words of a model that was trained contrastively.

    Args:
        model: the trained model; only its text transformer is used.
        digest: of the checkpoint that it comes from.
    """

    def __init__(self, model: ContrastiveTextModel, digest: str) -> None:
        self._network = model.text.eval().requires_grad_(False)
        self._vocabulary = Vocabulary(self._network.words)
        self.context_channels = self._network.width
        self.max_length = self._network.max_length
        self.digest = digest

    def tokenise(self, text: str) -> Tokenised:
        return self._vocabulary.tokenise(text, self.max_length)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = self._network.place.device
        states: Tensor = self._network(ids.to(device), mask.to(device)).states
        return states

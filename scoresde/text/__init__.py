"""Texts as the tokens that a network attends to."""

from scoresde.text.base import TextEncoder, Tokenised
from scoresde.text.own import OwnTextEncoder
from scoresde.text.vocabulary import Vocabulary

__all__ = ["OwnTextEncoder", "TextEncoder", "Tokenised", "Vocabulary"]

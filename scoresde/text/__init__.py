"""Texts as the tokens that a network attends to."""

from scoresde.text.base import TextEncoder, Tokenised
from scoresde.text.cache import encode_cached
from scoresde.text.load import open_text_encoder
from scoresde.text.own import OwnTextEncoder
from scoresde.text.pretrained import PretrainedTextEncoder
from scoresde.text.vocabulary import Vocabulary

__all__ = [
    "OwnTextEncoder",
    "PretrainedTextEncoder",
    "TextEncoder",
    "Tokenised",
    "Vocabulary",
    "encode_cached",
    "open_text_encoder",
]

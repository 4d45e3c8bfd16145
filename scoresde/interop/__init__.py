"""Published weights of other projects as models of this library, and models of this library for other programs."""

from scoresde.interop.autoencoders import holds_autoencoder, load_published_autoencoder
from scoresde.interop.hub import from_pretrained, push_to_hub, save_pretrained
from scoresde.interop.load import FORMATS, load_published
from scoresde.interop.to_diffusers import to_diffusers

__all__ = [
    "FORMATS",
    "from_pretrained",
    "holds_autoencoder",
    "load_published",
    "load_published_autoencoder",
    "push_to_hub",
    "save_pretrained",
    "to_diffusers",
]

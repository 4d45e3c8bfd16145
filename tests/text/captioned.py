"""Small captioned images, and a model for them."""

from __future__ import annotations

import torch

from scoresde import Scaling
from scoresde.models import ContrastiveTextModel
from scoresde.networks import ContrastiveNetwork, ImageEncoder, TextTransformer
from scoresde.text import Vocabulary

PLACES = {"left": 0, "middle": 3, "right": 6}
HEIGHTS = {"high": 0, "centred": 3, "low": 6}
SIZES = {"small": 2, "large": 4}
TEXTS = tuple(f"a {size} square, {height} on the {place}" for size in SIZES for height in HEIGHTS for place in PLACES)


def images(count, seed=0):
    """Noisy images `(N, 1, 10, 10)` in levels 0..255 of what their captions say, and the numbers of these."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(TEXTS), (count,), generator=generator)
    raw = 40 * torch.rand(count, 1, 10, 10, generator=generator)
    for image, number in zip(raw, which.tolist(), strict=True):
        size, rest = divmod(number, len(HEIGHTS) * len(PLACES))
        row, column = divmod(rest, len(PLACES))
        side = list(SIZES.values())[size]
        top, left = list(HEIGHTS.values())[row], list(PLACES.values())[column]
        image[0, top : top + side, left : left + side] += 200
    return raw, which


def model(texts=TEXTS, seed=0, **options):
    """A model with fresh weights for these images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = TextTransformer(Vocabulary.of(texts).words, **{"width": 16, "depth": 1, "max_length": 12} | options)
        network = ContrastiveNetwork(text, ImageEncoder(1, width=32, channels=8, depth=2), size=16)
    return ContrastiveTextModel(network, (1, 10, 10), Scaling(127.5, 127.5))


def table(trained):
    """The captions as the model reads them."""
    ids, mask = Vocabulary(trained.text.words).ids(TEXTS, trained.text.max_length)
    return {"ids": ids, "mask": mask}

"""Captions made for data: of digits from what is measured of them, of classes from their names.

A caption says less than there is to say: each attribute of a digit is told with the probability `SAID`, the digit
always. What is said and how is drawn with a seed, in the order of the samples, so that it is the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scoresde.data.strokes import Strokes, grades
from scoresde.data.wording import ATTRIBUTES, TRAINING, Description, caption, with_article

SAID = 0.8
SEED = 1
CLASS_WORDINGS = (
    "a photo of a {}",
    "a picture of a {}",
    "a photo of one {}",
    "a picture of one {}",
    "an image of a {}",
    "this is a {}",
    "here is a {}",
    "a {} in a photo",
)


def numbered(captions: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The different captions, in the order in which they appear, and the number of each sample's, `(N,)`."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    return tuple(numbers), torch.tensor([numbers[text] for text in captions])


def describe(strokes: Strokes, labels: Tensor, edges: Mapping[str, tuple[float, ...]]) -> list[Description]:
    """All that can be said of digits.

    Args:
        strokes: what is measured of them.
        labels: `(N,)`, which digits they are.
        edges: of the grades of each attribute; those without edges stay unsaid, x and y together.
    """
    none = [None] * len(labels)
    found = {name: grades(getattr(strokes, name), edges[name]).tolist() for name in Strokes._fields if name in edges}
    place = list(zip(found["x"], found["y"], strict=True)) if "x" in found and "y" in found else none
    columns = [found.get(name, none) for name in ("thickness", "slant", "size")]
    rows = zip(labels.tolist(), *columns, place, strict=True)
    return [Description(*row) for row in rows]


def digit_captions(descriptions: Sequence[Description], seed: int = SEED) -> list[str]:
    """A caption of each description, of which some attributes are left out, in a wording for training."""
    generator = torch.Generator().manual_seed(seed)
    said = (torch.rand(len(descriptions), len(ATTRIBUTES), generator=generator) < SAID).tolist()
    wordings = torch.randint(len(TRAINING), (len(descriptions),), generator=generator).tolist()
    captions = []
    for description, told, wording in zip(descriptions, said, wordings, strict=True):
        hidden = [name for name, tells in zip(ATTRIBUTES, told, strict=True) if not tells]
        captions.append(caption(description.without(hidden), wording))
    return captions


def class_captions(labels: Tensor, class_names: Sequence[str], seed: int = SEED) -> list[str]:
    """A caption of each sample of a class, in one of several wordings."""
    generator = torch.Generator().manual_seed(seed)
    wordings = torch.randint(len(CLASS_WORDINGS), (len(labels),), generator=generator).tolist()
    nouns = [name.replace("_", " ").strip() for name in class_names]
    pairs = zip(labels.tolist(), wordings, strict=True)
    return [with_article(CLASS_WORDINGS[wording].format(nouns[label])) for label, wording in pairs]

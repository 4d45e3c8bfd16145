"""Captions made for data: of digits from what is measured of them, of classes from their names.

A caption says less than there is to say: each attribute of a digit is told with the probability `SAID`, the digit
always. What is said and how is drawn with a seed, in the order of the samples, so that it is the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from scoresde.data.arrays import ArrayData
from scoresde.data.options import CLASSES, DIGITS, OWN, ReadOptions
from scoresde.data.strokes import EDGES, Strokes, grades, measure_strokes, quantile_edges
from scoresde.data.wording import ATTRIBUTES, TRAINING, Description, caption, with_article
from scoresde.data.wording import DIGITS as DIGIT_WORDS
from scoresde.errors import UsageError, require

SAID = 0.8
SEED = 1
VISIBLE = {"thickness": 0.02, "slant": 0.15, "size": 0.1, "x": 0.08, "y": 0.08}  # range of the middle 80 %
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


def with_captions(data: ArrayData, captions: Sequence[str]) -> ArrayData:
    """Data with a caption for each sample in the place of their labels.

    Captions that are the same count once.
    """
    texts, numbers = numbered(captions)
    return replace(data, cond={"text": numbers}, class_names=(), texts=texts)


def captioned(data: ArrayData, options: ReadOptions, source: str) -> ArrayData:
    """Data with the captions that the options ask for, unless these are the data's own.

    Raises:
        UsageError: for data without labels or names of classes, or that are not digits.
    """
    if options.captions not in (CLASSES, DIGITS):
        return data
    asked = f"{source}: data.captions={options.captions!r}"
    require(not data.texts, f"{asked}, and the data have captions already; leave it out")
    labels = data.labels
    if labels is None:
        raise UsageError(f"{asked} needs labels, and here are none; choose {OWN!r}, or none")
    if options.captions == CLASSES:
        require(bool(data.class_names), f"{asked} needs the names of the classes, and the data have only numbers")
        return with_captions(data, class_captions(labels, data.class_names))
    is_grey = len(data.shape) == 3 and data.shape[0] == 1
    require(is_grey, f"{asked} needs grey images of digits, not samples of shape {data.shape}; data.channels=1 helps")
    digits = _digits(data, asked)[labels]
    strokes = _measured(data, digits)
    return with_captions(data, digit_captions(describe(strokes, digits, varied_edges(strokes))))


def _digits(data: ArrayData, asked: str) -> Tensor:
    """The digit of each class, by its name or, without names, by its number."""
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    known = {str(number): number for number in range(10)} | {word: number for number, word in enumerate(DIGIT_WORDS)}
    strange = [name for name in names if name.lower() not in known]
    require(not strange, f"{asked} needs classes that are digits, 0 to 9, not {strange[:3]}; choose {CLASSES!r}")
    return torch.tensor([known[name.lower()] for name in names])


def _measured(data: ArrayData, digits: Tensor) -> Strokes:
    """What is measured of digits; the colour that covers more is the paper."""
    low, high = data.ends()
    total = sum(block.double().sum().item() for block in data.blocks())
    dark_on_light = total / data.values.numel() > (low + high) / 2
    parts = []
    start = 0
    for block in data.blocks():
        ink = (block.double() - low) / (high - low or 1.0)
        parts.append(measure_strokes(1 - ink if dark_on_light else ink, digits[start : start + len(block)]))
        start += len(block)
    return Strokes(*map(torch.cat, zip(*parts, strict=True)))


def varied_edges(strokes: Strokes) -> dict[str, tuple[float, ...]]:
    """Edges of equally frequent grades, of the attributes that differ enough to be seen.

    MNIST's digits, for example, have one size and one place.
    """
    found = {}
    for name, value in strokes._asdict().items():
        low, high = torch.quantile(value, torch.tensor([0.1, 0.9], dtype=value.dtype)).tolist()
        if high - low > VISIBLE[name]:
            found[name] = quantile_edges(value, len(EDGES[name]) - 1)
    return found


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

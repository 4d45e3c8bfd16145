"""Captions of handwritten digits: what is said of one, its wording, and what a wording says.

A `Description` holds the digit and its attributes in grades (`strokes`), any of which may be unsaid. `caption` puts it
into words, `parse` is the inverse: `parse(caption(d, w)) == d` for each description d and each wording w.

A wording is a number. It chooses a `Template`, which is an order of the parts, and for each attribute one of two
synonyms. The wordings of the last templates are held out from training data (`HELD_OUT`, against `TRAINING`). They use
words and phrases that training captions use as well, in other orders: an encoder of words knows all of them, and has to
understand sentences that it has not seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

from scoresde.errors import require

ATTRIBUTES = ("thickness", "slant", "size", "position")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THICKNESS = (
    ("very thin", "very fine"),
    ("thin", "fine"),
    ("regular", "normal"),
    ("thick", "bold"),
    ("very thick", "very bold"),
)
SIZE = (("tiny", "very small"), ("small", "little"), ("medium", "average"), ("large", "big"), ("huge", "very large"))
SLANT = (  # before the digit
    ("strongly left-leaning", "strongly left-slanted"),
    ("left-leaning", "left-slanted"),
    ("upright", "straight"),
    ("right-leaning", "slanted"),
    ("strongly right-leaning", "strongly slanted"),
)
LEANING = (  # elsewhere
    ("leaning strongly to the left", "strongly tilted to the left"),
    ("leaning left", "tilted to the left"),
    ("standing upright", "standing straight"),
    ("leaning right", "tilted to the right"),
    ("leaning strongly to the right", "strongly tilted to the right"),
)
POSITION = {
    (-1, -1): ("in the upper left", "at the top left"),
    (0, -1): ("in the upper middle", "at the top"),
    (1, -1): ("in the upper right", "at the top right"),
    (-1, 0): ("in the middle left", "on the left"),
    (0, 0): ("in the middle", "at the centre"),
    (1, 0): ("in the middle right", "on the right"),
    (-1, 1): ("in the lower left", "at the bottom left"),
    (0, 1): ("in the lower middle", "at the bottom"),
    (1, 1): ("in the lower right", "at the bottom right"),
}
PEN = ("drawn with a {} pen", "in {} strokes")
MEASURE = ("of {} size", "{} in size")
MARKS = frozenset({",", ":", ".", ";", "!", "'", '"', "(", ")"})
NEUTRAL = MARKS | {"a", "an", "the", "digit", "number", "image", "of", "in", "drawn", "handwritten", "with", "pen"}
NEUTRAL |= {"strokes", "size"}


@final
@dataclass(frozen=True)
class Description:
    """What is said of a digit; None is unsaid.

    Attributes:
        digit: 0 to 9.
        thickness, slant, size: grades -2 to 2, from thin, left and small.
        position: grades of x and y, -1 to 1 each, from the left and from the top.

    Raises:
        UsageError: for a digit or a grade that there is not.
    """

    digit: int | None = None
    thickness: int | None = None
    slant: int | None = None
    size: int | None = None
    position: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require(self.digit is None or 0 <= self.digit <= 9, f"digit={self.digit}: need 0 to 9, or None")
        for name in ("thickness", "slant", "size"):
            grade = getattr(self, name)
            require(grade is None or -2 <= grade <= 2, f"{name}={grade}: need a grade, -2 to 2, or None")
        require(
            self.position is None or self.position in POSITION,
            f"position={self.position}: need grades of x and y, -1 to 1 each, or None",
        )

    def without(self, names: Iterable[str]) -> Description:
        """The same with some attributes unsaid."""
        return replace(self, **dict.fromkeys(names))


@final
@dataclass(frozen=True)
class Template:
    """An order of the parts: `front, lead adjectives digit, after`; the parts after the digit follow each other.

    Attributes:
        lead: the words before the adjectives.
        adjectives: attributes between these and the digit.
        after: attributes behind the digit.
        front: attributes that begin the sentence.
        numeral: whether the digit is written 7, not seven.
        separator: of the parts behind the digit.
    """

    lead: str
    adjectives: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    front: tuple[str, ...] = ()
    numeral: bool = False
    separator: str = ", "


TEMPLATES = (
    Template("a", ("thickness", "size", "slant"), ("position",), separator=" "),
    Template("the digit", (), ("thickness", "slant", "size", "position"), numeral=True),
    Template("a", ("size", "thickness"), ("slant", "position")),
    Template("a", ("slant", "size"), ("thickness",), ("position",), separator=" "),
    Template("a handwritten", ("thickness",), ("size", "slant", "position")),
    Template("the number", (), ("size", "position", "thickness", "slant")),
    Template("a", ("slant", "thickness"), ("position", "size"), numeral=True),
    Template("an image of a", ("size", "slant"), ("position", "thickness")),
    Template("a", ("slant", "size", "thickness"), ("position",), numeral=True, separator=" "),
    Template("a handwritten", (), ("slant", "thickness", "size"), ("position",)),
)
HELD_OUT_TEMPLATES = (
    Template("the", ("size",), ("slant", "position"), ("thickness",), numeral=True),
    Template("an image of the number", (), ("slant", "size", "thickness"), ("position",)),
    Template("a handwritten", ("size", "slant", "thickness"), ("position",)),
    Template("the digit", (), ("position", "slant", "thickness", "size")),
)
CHOICES = 2 ** len(ATTRIBUTES)  # of synonyms
TRAINING = range(CHOICES * len(TEMPLATES))
HELD_OUT = range(len(TRAINING), len(TRAINING) + CHOICES * len(HELD_OUT_TEMPLATES))


def caption(description: Description, wording: int) -> str:
    """A description in words.

    Args:
        description: what is said.
        wording: a number of `TRAINING` or `HELD_OUT`.

    Raises:
        UsageError: for another number.
    """
    require(0 <= wording < HELD_OUT.stop, f"wording={wording}: need a number below {HELD_OUT.stop}")
    number, choices = divmod(wording, CHOICES)
    template = (*TEMPLATES, *HELD_OUT_TEMPLATES)[number]
    chosen = {name: choices >> bit & 1 for bit, name in enumerate(ATTRIBUTES)}

    def parts(names: tuple[str, ...], as_adjectives: bool = False) -> list[str]:
        said = [name for name in names if getattr(description, name) is not None]
        return [_words(description, name, chosen[name], as_adjectives, number // 2 % 2) for name in said]

    digit = description.digit
    noun = "digit" if digit is None else str(digit) if template.numeral else DIGITS[digit]
    lead = template.lead.removesuffix("digit").strip() if digit is None else template.lead
    head = " ".join([lead, *parts(template.adjectives, True), noun])
    after = parts(template.after)
    sentence = ", ".join([*parts(template.front), template.separator.join([head, *after])])
    return with_article(sentence)


def with_article(sentence: str) -> str:
    """A sentence with "an" for "a" before a vowel; none is heard at the beginning of "one" and "unicorn"."""
    return re.sub(r"\ba (?=[aeio8]|u(?!ni))(?!one\b)", "an ", sentence)


def _words(description: Description, name: str, choice: int, as_adjective: bool, pattern: int) -> str:
    """An attribute in words, before the digit or elsewhere; `pattern` varies the latter."""
    if name == "position":
        assert description.position is not None
        return POSITION[description.position][choice]
    grade = getattr(description, name) + 2
    if name == "slant":
        return (SLANT if as_adjective else LEANING)[grade][choice]
    adjective = (THICKNESS if name == "thickness" else SIZE)[grade][choice]
    return adjective if as_adjective else (PEN if name == "thickness" else MEASURE)[pattern].format(adjective)


def parse(text: str) -> Description:
    """What a text says of a digit, in the words that captions use, in any order.

    Raises:
        UsageError: for a word that captions do not use, or two statements of one kind.
    """
    words = _split(text)
    found: dict[str, Any] = {}
    place = 0
    while place < len(words):
        length = min(LONGEST, len(words) - place)
        while length and tuple(words[place : place + length]) not in PHRASES:
            length -= 1
        if length:
            name, value = PHRASES[tuple(words[place : place + length])]
            known = found.setdefault(name, value)
            require(known == value, f"{text!r}: says two things of the {name}; leave one of them out")
        else:
            require(words[place] in NEUTRAL, _unknown(words[place], text))
        place += max(length, 1)
    return Description(**found)


def _split(text: str) -> list[str]:
    """The words, numerals and marks of a text."""
    return re.findall(r"[^\W\d_]+|\d+|[^\s\w-]", text.lower())


def _unknown(word: str, text: str) -> str:
    return f"{text!r}: the word {word!r} is not one of captions of digits, such as {EXAMPLE!r}; leave it out"


EXAMPLE = caption(Description(7, 1, 1, -1, (-1, -1)), 1)


def _phrases() -> Iterator[tuple[str, str, int | tuple[int, int]]]:
    """Every phrase, the attribute of which it speaks, and what it says."""
    for number, word in enumerate(DIGITS):
        yield word, "digit", number
        yield str(number), "digit", number
    for name, table in (("thickness", THICKNESS), ("size", SIZE), ("slant", SLANT), ("slant", LEANING)):
        for grade, synonyms in enumerate(table):
            for phrase in synonyms:
                yield phrase, name, grade - 2
    for place, synonyms in POSITION.items():
        for phrase in synonyms:
            yield phrase, "position", place


PHRASES = {tuple(_split(phrase)): (name, value) for phrase, name, value in _phrases()}
LONGEST = max(map(len, PHRASES))

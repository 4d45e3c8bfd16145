"""Captions of digits: what a caption says is what is read from it, in every wording."""

import itertools
import random

import pytest

from scoresde import UsageError
from scoresde.data.wording import (
    ATTRIBUTES,
    CHOICES,
    HELD_OUT,
    POSITION,
    TRAINING,
    Description,
    caption,
    parse,
    with_article,
)
from scoresde.data.wording import _split as split_words

GRADES = (None, -2, -1, 0, 1, 2)
EVERYTHING = [
    Description(*said) for said in itertools.product([None, *range(10)], GRADES, GRADES, GRADES, [None, *POSITION])
]


def test_every_description_comes_back():
    drawn = random.Random(0)
    for description in EVERYTHING:
        wording = drawn.choice(range(HELD_OUT.stop))
        said = caption(description, wording)
        assert parse(said) == description, said


@pytest.mark.parametrize("wording", range(0, HELD_OUT.stop, CHOICES))
def test_every_wording_comes_back(wording):
    drawn = random.Random(wording)
    for number, description in itertools.product(range(wording, wording + CHOICES), drawn.sample(EVERYTHING, 60)):
        said = caption(description, number)
        assert parse(said) == description, said
        assert said == " ".join(said.split())
        assert not said.endswith(",")


def test_held_out_wordings_are_other_sentences_in_the_same_words():
    full = [description for description in EVERYTHING if None not in vars(description).values()]
    drawn = random.Random(0)
    known = {word for number in TRAINING for d in drawn.sample(full, 200) for word in split_words(caption(d, number))}
    assert not set(TRAINING) & set(HELD_OUT)
    for description in drawn.sample(full, 50):
        trained = {caption(description, number) for number in TRAINING}
        held_out = {caption(description, number) for number in HELD_OUT}
        assert len(held_out) == len(HELD_OUT)
        assert not trained & held_out
        assert {word for said in held_out for word in split_words(said)} <= known
        assert len(trained) > 0.9 * len(TRAINING)


def test_captions_are_english():
    said = Description(7, 1, 1, -1, (-1, -1))
    assert caption(said, 0) == "a thick small right-leaning seven in the upper left"
    assert caption(said.without(ATTRIBUTES), 0) == "a seven"
    assert caption(Description(8), 0) == "an eight"
    assert caption(Description(1, slant=0), 0) == "an upright one"
    assert with_article("a one and a eel, a unicorn, a umbrella") == "a one and an eel, a unicorn, an umbrella"


def test_users_prompts_are_read():
    assert parse("A thick slanted seven") == Description(7, thickness=1, slant=1)
    assert parse("seven, seven!") == Description(7)
    assert parse("") == Description()


def test_what_is_not_said_of_digits_is_named():
    with pytest.raises(UsageError, match="the word 'purple' is not one of captions of digits, such as"):
        parse("a purple seven")
    with pytest.raises(UsageError, match="says two things of the thickness; leave one of them out"):
        parse("a thin very thick seven")
    with pytest.raises(UsageError, match="digit=10: need 0 to 9"):
        Description(10)
    with pytest.raises(UsageError, match="size=3: need a grade"):
        Description(1, size=3)
    with pytest.raises(UsageError, match=r"position=\(2, 0\): need grades"):
        Description(1, position=(2, 0))
    with pytest.raises(UsageError, match="wording=9999: need a number below"):
        caption(Description(1), 9999)

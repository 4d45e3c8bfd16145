"""Conditions: None, tensors and dicts of conditions are cut, moved, joined and counted alike."""

import numpy as np
import pytest
import torch

from scoresde import UsageError, condition


def text(num_samples=4):
    """A condition of three parts, one of them in a dict of its own."""
    generator = torch.Generator().manual_seed(0)
    return {
        "labels": torch.arange(num_samples),
        "text": {
            "tokens": torch.randn(num_samples, 5, 2, generator=generator),
            "mask": torch.ones(num_samples, 5, dtype=torch.bool),
        },
        "unused": None,
    }


CONDITIONS = {"none": None, "labels": torch.arange(4), "images": torch.randn(4, 1, 3, 3), "nested": text()}


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif one is not None:
        assert torch.equal(one, other)


@pytest.mark.parametrize("cond", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_what_is_cut_and_joined_is_the_same(cond):
    first, rest = condition.take(cond, slice(0, 1)), condition.take(cond, slice(1, None))
    assert_same(condition.join([first, rest]), cond)
    assert_same(condition.join([cond]), cond)
    assert condition.count(cond) == (None if cond is None else 4)
    assert condition.count(rest) == (None if cond is None else 3)


def test_samples_are_taken_from_every_part():
    cond = text()
    for index in (slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, False, True])):
        some = condition.take(cond, index)
        assert torch.equal(some["labels"], cond["labels"][index])
        assert torch.equal(some["text"]["tokens"], cond["text"]["tokens"][index])
        assert torch.equal(some["text"]["mask"], cond["text"]["mask"][index])
        assert some["unused"] is None


def test_every_part_is_moved_and_keeps_its_type(device):
    moved = condition.to(text(), device)
    assert {part.device.type for _, part in condition.parts(moved)} == {device.type}
    assert [part.dtype for _, part in condition.parts(moved)] == [torch.int64, torch.float32, torch.bool]
    assert condition.to(None, device) is None


def test_parts_are_named_as_a_user_would_write_them():
    assert [name for name, _ in condition.parts(text())] == [
        "cond['labels']",
        "cond['text']['tokens']",
        "cond['text']['mask']",
    ]
    assert [name for name, _ in condition.parts(torch.zeros(2))] == ["cond"]
    assert list(condition.parts(None)) == []
    assert condition.describe(None) == "no condition"
    assert condition.describe({}) == "an empty condition"
    expected = "cond['tokens'] (float32, (4, 5)), cond['mask'] (bool, (4,))"
    assert condition.describe({"tokens": torch.zeros(4, 5), "mask": torch.ones(4, dtype=torch.bool)}) == expected


def test_the_matching_parts_of_several_conditions_are_combined():
    one, other = {"a": torch.zeros(2), "b": {"c": torch.ones(2, 3)}}, {"b": {"c": torch.ones(2, 3)}, "a": torch.ones(2)}
    added = condition.apply(torch.add, one, other)
    assert_same(added, {"a": torch.ones(2), "b": {"c": torch.full((2, 3), 2.0)}})


# what a user gives


def test_arrays_lists_and_numbers_become_tensors():
    given = {"labels": [0, 2, 1], "text": {"tokens": np.zeros((3, 5), dtype=np.int64)}, "strength": 0.5, "unused": None}
    cond = condition.from_values(given, 3)
    assert torch.equal(cond["labels"], torch.tensor([0, 2, 1]))
    assert torch.equal(cond["text"]["tokens"], torch.zeros(3, 5, dtype=torch.int64))
    assert torch.equal(cond["strength"], torch.full((3,), 0.5))
    assert cond["unused"] is None
    assert torch.equal(condition.from_values(7, 3), torch.tensor([7, 7, 7]))
    assert torch.equal(condition.from_values(torch.tensor(7), 2), torch.tensor([7, 7]))
    assert condition.from_values(None, 3) is None


def test_any_number_of_entries_is_spread_over_the_samples():
    for given, expected in (
        (7, [7, 7, 7, 7]),
        ([5, 6, 7], [5, 6, 7, 5]),
        ([3, 2, 1, 0], [3, 2, 1, 0]),
        (range(6), [0, 1, 3, 4]),
    ):
        labels = given if isinstance(given, int) else list(given)
        assert condition.spread(labels, 4).tolist() == expected, given
        among_numbers = condition.spread({"strength": 0.5, "of": {"labels": labels}, "unused": None}, 4)
        assert_same(among_numbers["strength"], torch.full((4,), 0.5))
        assert_same(among_numbers["of"]["labels"], torch.tensor(expected))
    assert condition.spread(None, 4) is None
    assert condition.spread({}, 4) == {}


MISTAKES = {
    "other lengths": (
        lambda: condition.count({"labels": torch.zeros(3), "text": {"tokens": torch.zeros(4, 5)}}),
        r"cond: its parts are for different numbers of samples: cond\['labels'\] has 3, .*\['tokens'\] has 4",
    ),
    "one number": (
        lambda: condition.count({"text": {"strength": torch.tensor(0.5)}}),
        r"cond\['text'\]\['strength'\]: is a single number; need one entry a sample",
    ),
    "a list": (lambda: condition.check_count([0, 1], 2), "cond: is a list; need a tensor, None, or a dict of these"),
    "a string in a dict": (
        lambda: condition.take({"text": {"prompt": "a cat"}}, slice(1)),
        r"cond\['text'\]\['prompt'\]: is a str; need a tensor",
    ),
    "too many": (lambda: condition.check_count(text(), 3), r"cond of length 4: need one entry a sample, 3"),
    "other parts": (
        lambda: condition.join([{"text": {"tokens": torch.zeros(2)}}, {"text": {"mask": torch.zeros(2)}}]),
        r"cond\['text'\]: cond\['text'\]\['tokens'\] .* and cond\['text'\]\['mask'\] .* have different parts",
    ),
    "one without": (
        lambda: condition.join([torch.zeros(2), None]),
        r"cond: a tensor \(float32, \(2,\)\) and no condition have different parts",
    ),
    "a tensor and a dict": (lambda: condition.join([{"a": torch.zeros(2)}, torch.zeros(2)]), "have different parts"),
    "a word": (lambda: condition.from_values("cat", 3), "cond: cannot be converted to a tensor"),
    "ragged lists": (
        lambda: condition.from_values({"tokens": [[1, 2], [3]]}, 2),
        r"cond\['tokens'\]: cannot be converted to a tensor",
    ),
    "words": (
        lambda: condition.from_values({"a": {"b": ["x", "y"]}}, 2),
        r"cond\['a'\]\['b'\]: cannot be converted to a tensor",
    ),
    "none to spread": (lambda: condition.spread([], 3), "cond: is empty; give at least one entry"),
    "other lengths to spread": (
        lambda: condition.spread({"a": [0, 1], "b": [0, 1, 2], "c": 0.5}, 4),
        r"cond: its parts are for different numbers of samples: cond\['a'\] has 2, cond\['b'\] has 3",
    ),
    "an entry short": (lambda: condition.from_values([0, 1], 3), r"cond of length 2: need one entry a sample, 3"),
}


@pytest.mark.parametrize(("use", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_in_one_line(use, message):
    with pytest.raises(UsageError, match=message) as error:
        use()
    assert "\n" not in str(error.value)

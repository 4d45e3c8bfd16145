"""What a checkpoint says of its data: it comes back, and a header that lacks a part is named."""

import dataclasses
import json
import math

import pytest
import torch

from scoresde import UsageError, checkpoint
from scoresde.data import ArrayData
from scoresde.data.info import DataInfo, fingerprint, has_fingerprint

INFO = DataInfo(-1.5, 2, 3, ("cat", "dog", "eel"), True, "abc", "def")


def test_an_info_comes_back_through_json():
    for info in (INFO, DataInfo(0.0, 1.0, 0)):
        assert DataInfo.from_json(json.loads(json.dumps(info.to_json())), "file") == info


def test_an_info_is_that_of_its_data():
    labels = torch.tensor([0, 2, 1])
    names = ("cat", "dog", "eel", "fox")
    data = ArrayData(torch.tensor([[0], [255], [3]], dtype=torch.uint8), labels, class_names=names)
    assert DataInfo.of(data) == DataInfo(0, 255, 4, names, True, fingerprint(data))
    floats = ArrayData(torch.tensor([[0.5, -1.5], [0.0, 2.0]]))
    assert DataInfo.of(floats) == DataInfo(-1.5, 2.0, 0, (), False, fingerprint(floats))
    held_out = ArrayData(torch.tensor([[0.5, -3.0], [7.0, 2.0]]))
    assert DataInfo.of(floats, held_out) == DataInfo(
        -3.0, 7.0, 0, (), False, fingerprint(floats), fingerprint(held_out)
    )


def test_an_info_of_a_version_that_knew_no_checksum_of_held_out_data_is_read():
    written = INFO.to_json()
    del written["held_out_digest"]
    assert DataInfo.from_json(written, "file") == dataclasses.replace(INFO, held_out_digest="")


@pytest.mark.parametrize(("largest", "expected"), [(16, (3, 16)), (127, (3, 127)), (128, (0, 255)), (240, (0, 255))])
def test_pixels_have_the_range_of_a_byte(largest, expected):
    info = DataInfo.of(ArrayData(torch.tensor([[3], [largest]], dtype=torch.uint8)))
    assert (info.low, info.high) == expected
    wide = DataInfo.of(ArrayData(torch.tensor([[3], [largest]], dtype=torch.int16)))
    assert (wide.low, wide.high) == (3, largest)


def test_a_fingerprint_of_a_part_is_of_the_order_of_its_samples():
    values = torch.arange(12.0)[:, None]
    data = ArrayData(values, torch.arange(12) % 3)
    train, held_out = data.split(0.25)
    assert fingerprint(train) == fingerprint(ArrayData(values.clone(), torch.arange(12) % 3).split(0.25)[0])
    others = [train.select(torch.arange(9).flip(0)), held_out, data.select(torch.arange(9))]
    others.append(ArrayData(values.flip(0), torch.arange(12) % 3).split(0.25)[0])
    assert len({fingerprint(train), *map(fingerprint, others)}) == 5
    earlier = checkpoint.digest({"values": train.values, "cond": train.cond})  # as versions before data on disk had it
    assert has_fingerprint(train, fingerprint(train))
    assert has_fingerprint(train, earlier)
    assert not any(has_fingerprint(other, earlier) or has_fingerprint(other, fingerprint(train)) for other in others)


def test_a_fingerprint_is_of_values_order_and_conditions():
    values = torch.arange(6.0).view(3, 2)
    labels = torch.tensor([0, 1, 0])
    known = fingerprint(ArrayData(values, labels))
    assert fingerprint(ArrayData(values.clone(), labels.clone())) == known
    for other in (ArrayData(values.flip(0), labels), ArrayData(values, 1 - labels), ArrayData(values)):
        assert fingerprint(other) != known


def test_a_class_has_a_name_or_a_number():
    info = DataInfo(0, 1, 3, ("ant", "bee", "cow"))
    assert [info.class_number(name) for name in ("bee", "2", "ant")] == [1, 2, 0]
    with pytest.raises(UsageError, match=r"unknown class 'bea': did you mean 'bee'"):
        info.class_number("bea")
    years = DataInfo(0, 1, 2, ("1999", "2005"))
    assert years.class_number("2005") == 1
    with pytest.raises(UsageError, match=r"unknown class '1'.*1999, 2005"):
        years.class_number("1")
    plain = DataInfo(0, 1, 2)
    assert plain.class_number("1") == 1
    with pytest.raises(UsageError, match=r"class 'one': need a whole number below 2"):
        plain.class_number("one")


WRONG = {
    **{name: (None, "1", True, math.nan, ["a"], math.inf, 10**400, "1\n2") for name in ("low", "high")},
    "num_classes": (None, "1", True, math.nan, ["a"], -1, 2.0, 10**30),
    "class_names": (None, "abc", [1], {"a": 1}),
    "quantized": (None, 1, "yes"),
    "digest": (None, 1, ["a"]),
}


@pytest.mark.parametrize(("field", "values"), WRONG.items(), ids=WRONG.keys())
def test_a_header_without_what_sampling_needs_of_the_data_is_named(field, values):
    for value in values:
        with pytest.raises(UsageError, match=rf"file: data\.{field}=.* in its header is damaged") as raised:
            DataInfo.from_json(INFO.to_json() | {field: value}, "file")
        assert "\n" not in str(raised.value)
    missing = {name: value for name, value in INFO.to_json().items() if name != field}
    with pytest.raises(UsageError, match=rf"file: data\.{field}=None in its header is damaged"):
        DataInfo.from_json(missing, "file")


def test_a_range_that_is_none_is_named():
    with pytest.raises(UsageError, match=r"file: data\.low=3"):
        DataInfo.from_json(INFO.to_json() | {"low": 3}, "file")
    one_value = INFO.to_json() | {"low": 2}
    assert DataInfo.from_json(one_value, "file").low == 2


def test_raw_values_become_the_unit_interval():
    raw = torch.tensor([-1.5, 2.0, 0.25])
    assert INFO.to_unit(raw).tolist() == [0, 1, 0.5]
    assert DataInfo(2.0, 2.0, 0).to_unit(torch.tensor([2.0, 2.0])).tolist() == [0, 0]

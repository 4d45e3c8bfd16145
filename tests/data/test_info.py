"""What a checkpoint says of its data: it comes back, and a header that lacks a part is named."""

import json
import math

import pytest
import torch

from scoresde import UsageError
from scoresde.data import ArrayData
from scoresde.data.info import DataInfo

INFO = DataInfo(-1.5, 2, 3, ("cat", "dog", "eel"), True, "abc")


def test_an_info_comes_back_through_json():
    for info in (INFO, DataInfo(0.0, 1.0, 0)):
        assert DataInfo.from_json(json.loads(json.dumps(info.to_json())), "file") == info


def test_an_info_is_that_of_its_data():
    labels = torch.tensor([0, 2, 1])
    names = ("cat", "dog", "eel", "fox")
    data = ArrayData(torch.tensor([[0], [255], [3]], dtype=torch.uint8), labels, class_names=names)
    assert DataInfo.of(data, "abc") == DataInfo(0, 255, 4, names, True, "abc")
    floats = ArrayData(torch.tensor([[0.5, -1.5], [0.0, 2.0]]))
    assert DataInfo.of(floats) == DataInfo(-1.5, 2.0, 0, (), False, "")


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

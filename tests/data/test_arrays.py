"""Data in memory: exact scaling, disjoint splits, conditions of any kind, and what is refused."""

import math

import pytest
import torch

from scoresde import Scaling, UsageError, checkpoint, condition
from scoresde.data import ArrayData, arrays


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_scaling_there_and_back(dtype, device):
    scaling = Scaling(center=127.5, scale=50.0)
    raw = torch.arange(256, device=device).to(dtype)
    x = scaling.encode(raw)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[[0, 255]], torch.tensor([-2.55, 2.55], device=device))
    torch.testing.assert_close(scaling.decode(x), raw.float(), rtol=0, atol=1e-4)  # 255 roundings of float32


def test_batches_and_deviation_are_in_the_models_units(device):
    values = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    data = ArrayData(values, torch.arange(50) % 4, Scaling(5.0, 2.0)).to(device)
    index = torch.tensor([7, 3, 7], device=device)
    x, labels = data.batch(index)
    torch.testing.assert_close(x, ((values[[7, 3, 7]] - 5) / 2).to(device))
    assert labels.tolist() == [3, 3, 3]
    assert data.num_classes == 4
    assert data.std() == pytest.approx((values / 2).std().item(), rel=1e-5)
    assert data.values.device.type == data.labels.device.type == device.type


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_deviation_over_blocks_is_that_of_all(monkeypatch, offset):
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 8 + offset
    monkeypatch.setattr(arrays, "BLOCK", 100)
    assert ArrayData(values).std() == pytest.approx(values.double().std().item(), rel=1e-9)


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5, 0.999])
def test_split_is_disjoint_complete_and_repeatable(held_out):
    values = torch.arange(101.0)[:, None]
    data = ArrayData(values, 2 * values, Scaling(1.0, 2.0))
    train, held = data.split(held_out)
    parts = [train] if held is None else [train, held]
    assert torch.equal(torch.cat([p.values for p in parts]).sort(0).values, values)  # each once, none lost
    assert all(torch.equal(2 * part.values, part.cond) for part in parts)  # conditions stay with their sample
    assert all(part.codec == data.codec for part in parts)
    assert len(train) == max(1, 101 - round(held_out * 101))
    assert torch.equal(data.split(held_out)[0].values, train.values)
    torch.manual_seed(5)  # whatever the state of the world
    assert torch.equal(data.split(held_out)[0].values, train.values)


@pytest.mark.parametrize("held_out", [0.1, 0.5, 0.9])
def test_every_class_is_trained_on(held_out):
    labels = torch.cat([torch.zeros(90, dtype=torch.long), torch.arange(1, 11)])  # ten classes of one sample
    values = torch.arange(100.0)[:, None]
    train, held = ArrayData(values, labels).split(held_out)
    assert train.labels.unique().tolist() == list(range(11))
    assert torch.equal(torch.cat([train.values, held.values]).sort(0).values, values)
    plain, _ = ArrayData(values, 0 * labels).split(held_out)
    assert torch.equal(train.values[: len(plain)], plain.values)  # otherwise the split is that without labels


def test_rms_is_about_zero_and_in_the_models_units():
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    data = ArrayData(values, codec=Scaling(4.0, 2.0))
    assert data.rms() == pytest.approx(((values.double() - 4) / 2).square().mean().sqrt().item(), rel=1e-6)


def test_split_shuffles_sorted_data():
    data = ArrayData(torch.arange(1000.0)[:, None])
    _, held = data.split(0.2)
    # 200 of 0 .. 999 drawn at random: mean 499.5, standard error 289/sqrt(200) sqrt(0.8) = 18; level 1e-6 at 5
    assert abs(held.values.mean().item() - 499.5) < 5 * 18.3


@pytest.mark.parametrize("held_out", [-0.1, 1.0, math.nan])
def test_split_refuses_other_shares(held_out):
    with pytest.raises(UsageError, match=f"held_out={held_out}"):
        ArrayData(torch.zeros(4, 1)).split(held_out)


def spoiled(*bad):
    values = torch.zeros(10, 2, 2)
    for index, value in enumerate(bad):
        values[index, 0] = value  # two entries: a sample counts once
    return values


MISTAKES = {
    "nan": (lambda: ArrayData(spoiled(math.nan)), "1 of 10 samples"),
    "infinities": (lambda: ArrayData(spoiled(math.inf, -math.inf, math.nan)), "3 of 10 samples"),
    "no samples": (lambda: ArrayData(torch.zeros(0, 2)), r"\(0, 2\)"),
    "no entries": (lambda: ArrayData(torch.zeros(3, 0)), r"\(3, 0\)"),
    "flat": (lambda: ArrayData(torch.zeros(5)), r"\(5,\)"),
    "negative label": (lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, -2, 1])), "smallest is -2; count from 0"),
    "a label like a hash": (
        lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, 2**40, 1])),
        "largest is 1099511627776",
    ),
    "a label without a name": (
        lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, 2, 1]), class_names=("cat", "dog")),
        "largest is 2; need class numbers below 2",
    ),
    "too few labels": (
        lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, 1])),
        "cond of length 2: need one entry a sample, 3",
    ),
    "a part that is too short": (
        lambda: ArrayData(torch.zeros(3, 1), {"text": torch.zeros(3, 2), "mask": torch.zeros(2, 2)}),
        r"cond\['text'\] has 3, cond\['mask'\] has 2",
    ),
    "a number for all": (
        lambda: ArrayData(torch.zeros(3, 1), torch.tensor(1)),
        r"cond: is a single number; need one entry a sample, \(B, \.\.\.\)",
    ),
    "a word": (lambda: ArrayData(torch.zeros(3, 1), "cat"), "cond: is a str; need a tensor"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_arrays_are_refused_with_the_count(make, message):
    with pytest.raises(UsageError, match=message):
        make()


CONDITIONS = {
    "none": None,
    "labels": torch.tensor([0, 3, 1, 1, 0, 2]),
    "numbers": torch.linspace(0, 1, 6),
    "one-hot": torch.eye(6).long(),
    "text": {"tokens": torch.arange(30).view(6, 5), "mask": torch.arange(30).view(6, 5) % 3 > 0, "style": None},
}


@pytest.mark.parametrize("cond", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_of_any_kind_stay_with_their_sample(cond, device):
    data = ArrayData(torch.arange(6.0)[:, None], cond).to(device)
    for part in (data, *data.split(0.5), data.select(torch.tensor([4, 0, 4], device=device))):
        index = part.values[:, 0].long().cpu()
        for (name, found), (_, given) in zip(condition.parts(part.cond), condition.parts(cond), strict=True):
            assert torch.equal(found.cpu(), given[index]), name
            assert found.dtype == given.dtype
        x, of_batch = part.batch(slice(1, 3))
        expected = condition.take(part.cond, slice(1, 3))
        assert torch.equal(x, part.values[1:3])
        for (name, found), (_, given) in zip(condition.parts(of_batch), condition.parts(expected), strict=True):
            assert torch.equal(found, given), name
    is_labels = isinstance(cond, torch.Tensor) and cond.ndim == 1 and not cond.is_floating_point()
    assert (data.labels is not None) == is_labels
    assert data.num_classes == (4 if is_labels else 0)


def test_a_part_knows_its_places_in_the_whole():
    data = ArrayData(torch.arange(40.0)[:, None])
    train, held_out = data.split(0.25)
    part = held_out.select(torch.tensor([3, 0, 7]))
    for piece in (train, held_out, part, part.to("cpu")):
        assert torch.equal(data.values[piece.index], piece.values)
    assert data.index is None


def captioned(*numbers, texts=("a one", "a two"), key="text"):
    return ArrayData(torch.zeros(len(numbers), 2), {key: torch.tensor(numbers)}, texts=texts)


def test_captions_are_those_of_their_samples():
    data = captioned(1, 0, 1)
    assert data.labels is None
    chosen = data.select(torch.tensor([1, 2]))
    assert [chosen.texts[number] for number in chosen.cond["text"]] == ["a one", "a two"]
    train, held_out = captioned(1, 0, 1, 0).split(0.25)
    assert (len(train), len(held_out)) == (3, 1)
    assert train.texts == held_out.texts == data.texts


def test_captions_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"cond\['text'\]: numbers from 0 to 2; need those of 2 captions, 0 to 1"):
        captioned(0, 2)
    with pytest.raises(UsageError, match=r"cond\['text'\]: numbers from -1 to 0"):
        captioned(0, -1)
    with pytest.raises(UsageError, match=r"texts: 2 captions with cond\['word'\] \(int64, \(1,\)\); need cond={'text'"):
        captioned(0, key="word")
    with pytest.raises(UsageError, match="texts: 1 captions with no condition"):
        ArrayData(torch.zeros(1, 2), texts=("a one",))


def test_captions_are_part_of_the_checksum():
    said = {captioned(0, 1, texts=texts).survey.digest for texts in ((), ("a", "b"), ("a", "c"), ("a,b", ""))}
    assert len(said) == 4
    plain = captioned(0, 1, texts=())
    assert plain.survey.digest == checkpoint.digest({"cond['text']": plain.cond["text"], "values": plain.values})

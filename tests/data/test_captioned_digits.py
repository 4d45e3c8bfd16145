"""The built-in captioned digits: always the same bytes, of which the captions tell the truth."""

import hashlib

import pytest
import torch

from scoresde.data import load
from scoresde.data.captioned_digits import VARIANTS, own_shear
from scoresde.data.captioning import SAID, describe
from scoresde.data.centre_lines import Lines, thinned
from scoresde.data.strokes import EDGES, grades, measure_strokes
from scoresde.data.wording import ATTRIBUTES, parse


@pytest.fixture(scope="module")
def data():
    return load("digits_text")


@pytest.fixture(scope="module")
def said(data):
    return [parse(data.texts[number]) for number in data.cond["text"].tolist()]


@pytest.fixture(scope="module")
def strokes(data, said):
    return measure_strokes(data.values / 255, torch.tensor([description.digit for description in said]))


def test_the_bytes_are_always_the_same(data):
    assert (len(data), data.shape, data.values.dtype) == (9684, (1, 24, 24), torch.uint8)
    assert len(data) % VARIANTS == 0
    content = hashlib.sha256(data.values.numpy().tobytes()).hexdigest()
    assert content.startswith("2d8d1bc6d9b0fe9d")
    texts = hashlib.sha256("\n".join(data.texts[number] for number in data.cond["text"]).encode()).hexdigest()
    assert texts.startswith("cafdbacd356520c0")


def test_every_grade_is_about_as_frequent(strokes):
    for name, edges in EDGES.items():
        shares = torch.bincount(grades(getattr(strokes, name), edges) + (len(edges) - 2) // 2) / len(strokes.x)
        assert (shares * (len(edges) - 1)).sub(1).abs().max() < 0.15, name


def test_attributes_vary_independently(strokes):
    correlations = torch.corrcoef(torch.stack(list(strokes))) - torch.eye(5)
    assert correlations.abs().max() < 0.07


def test_captions_tell_what_is_measured(data, said, strokes):
    full = describe(strokes, torch.tensor([description.digit for description in said]), EDGES)
    for description, all_of_it in zip(said, full, strict=True):
        hidden = [name for name in ATTRIBUTES if getattr(description, name) is None]
        assert all_of_it.without(hidden) == description
    told = sum(getattr(description, name) is not None for description in said for name in ATTRIBUTES)
    share = told / (len(said) * len(ATTRIBUTES))
    assert share == pytest.approx(SAID, abs=4 * (SAID * (1 - SAID) / (len(said) * len(ATTRIBUTES))) ** 0.5)


def test_a_canvas_has_a_margin(data):
    edge = torch.cat([data.values[..., 0, :], data.values[..., -1, :], data.values[..., 0], data.values[..., -1]], 1)
    touched = (edge.flatten(1) > 127).any(1).double().mean()
    assert touched < 0.01


def test_the_shear_of_lines_is_that_by_which_they_were_sheared():
    y = torch.linspace(-1, 1, 50, dtype=torch.float64)
    points = torch.stack([-0.3 * y + 2, y], 1)[None]
    torch.testing.assert_close(own_shear(*Lines(points, torch.ones(1, 50, dtype=torch.bool))).item(), 0.3)


def test_thinned_shapes_are_lines_of_the_same_form():
    mask = torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[0, 3:8, 2:18] = True  # a bar
    mask[1, 2:18, 2:18] = True
    mask[1, 7:13, 7:13] = False  # a frame
    thin = torch.from_numpy(thinned(mask.numpy()))
    assert thin[0].any(0).sum() >= 11
    assert thin[0].sum(0).max() == 1
    assert thin[0].any(1).sum() == 1
    around = thin[1].double()[None, None]
    neighbours = torch.nn.functional.conv2d(around, torch.ones(1, 1, 3, 3).double(), padding=1)[0, 0] - 1
    assert (neighbours[thin[1]] >= 2).all()  # a closed line has no ends
    assert not thin[1][7:13, 7:13].any()

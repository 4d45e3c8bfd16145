"""Comparing samplers: a table, a picture, numbers, and what is recommended."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from scoresde.app.cli import main
from scoresde.app.compare import COUNTS, Measured, _report
from tests.mistakes import assert_mistake

COMPARE = ["--mode=compare", "--num_samples=10", "--device=cpu", "--workdir=runs/toy"]


def test_compare_prints_writes_and_recommends(work, tmp_path, capsys):
    output = tmp_path / "compare.png"
    assert main([*COMPARE, f"--output={output}"]) == 0
    said = capsys.readouterr()
    assert "recommended: --sampler" in said.out
    assert "reference" in said.err
    with Image.open(output) as picture:
        assert picture.format == "PNG"
    found = json.loads(output.with_suffix(".json").read_text())
    assert found["evaluations"] == [5, 6, 8, 10, 15, 20, 35, 50]
    assert {"auto", "trigonometric", "unipc", "dpm_solver", "ddim", "heun"} == found["errors"].keys()
    assert found["errors"]["heun"][1] is None  # takes an odd number of evaluations
    assert found["errors"]["ddim"][0] > found["errors"]["ddim"][-1] > 0
    assert found["deviation"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--sampler=pc", r"sampler=pc: belongs to --mode sample, --mode evaluate, .*, --mode visualize"),
        ("--num_steps=5", r"num_steps=5: belongs to --mode sample"),
        ("--num_samples=3", r"num_samples=3: need at least 10"),
        ("--output=x.svg", r"output='x\.svg': need the name of a \.png file"),
    ],
)
def test_mistakes_of_comparing_are_one_line(work, capsys, wrong, message):
    assert_mistake(capsys, [*COMPARE, wrong], message)


@pytest.mark.parametrize(
    ("errors", "doubt", "expected"),
    [
        (
            [0.5, 0.03, 0.019],
            1e-3,
            "recommended: --sampler auto --num_steps 8, with an error of 1.9 %",
        ),
        ([0.5, 0.4, 0.3], 1e-3, "recommended: --sampler ode; no number of steps above comes within 2 %"),
        ([1e-3, 1e-3, 1e-3], 0.1, "the flow of this model did not converge"),
    ],
)
def test_the_fewest_evaluations_that_are_good_are_recommended(capsys, errors, doubt, expected):
    """An error of 2 % of the deviation, here 1, is good; NaN stands for a number that a sampler does not take."""
    errors = errors + [0.3] * (len(COUNTS) - len(errors))
    measured = {"auto": errors, "heun": [math.nan] * len(COUNTS)}
    _report(Measured(measured, {name: [1e-3] * len(COUNTS) for name in measured}), 1.0, doubt)
    assert expected in capsys.readouterr().out

"""Calibration from the command line: tables that `--sampler auto` then takes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from samplers import FittedSampler
from samplers.fitted.calibrate import ITERATIONS, Calibration
from scoresde.app import calibrate as calibrate_module
from scoresde.app.cli import main
from scoresde.app.pilot_cache import calibrated_path
from tests.mistakes import assert_mistake
from tests.runs import SAMPLE, drawn, newest

CALIBRATE = ["--mode=calibrate", "--workdir=runs/toy", "--device=cpu"]
pytestmark = pytest.mark.usefixtures("fits")
AUTO = [*SAMPLE, "--workdir=runs/toy", "--sampler=auto"]


@pytest.fixture
def another_table(monkeypatch):
    """Calibration finds another table: the run here is trained too little for a real one to gain."""

    def calibrated(model, sampler, num_steps, coupling, *, on_iteration, **_):
        fitted = sampler.tables[num_steps]
        for _ in range(ITERATIONS):
            on_iteration(0.1)
        return Calibration(FittedSampler({num_steps: replace(fitted, weights=1.1 * fitted.weights)}), 0.2, 0.1)

    monkeypatch.setattr(calibrate_module, "calibrated_table", calibrated)


@pytest.fixture
def calibrated(work, capsys, another_table):
    """The file of a calibrated table of 5 evaluations."""
    path = calibrated_path(newest("toy"))
    path.unlink(missing_ok=True)
    assert main([*CALIBRATE, "--num_samples=200", "--num_steps=5"]) == 0
    said = capsys.readouterr()
    assert "reference: the flow from 200 noises" in said.out
    assert re.search(r"5 evaluations: error \S+ -> \S+ on noises held out, \d+ s; kept in .*calibrated.json", said.out)
    assert "--sampler auto takes the tables that are kept" in said.out
    assert f"calibrate 5 {ITERATIONS}/{ITERATIONS}" in said.err
    yield path
    path.unlink(missing_ok=True)


def test_auto_takes_calibrated_tables_and_says_so(calibrated, tmp_path, capsys):
    def auto(*arguments):
        samples = drawn(tmp_path / "a.png", "--sampler=auto", *arguments)[1]
        return samples, "is calibrated" in capsys.readouterr().out

    taken, said = auto()
    assert said
    kept = calibrated.read_text()
    calibrated.unlink()
    left, said = auto()
    assert not said
    assert 0 < np.abs(taken - left).max() < 1
    calibrated.write_text(kept)
    assert not auto("--num_steps=6")[1]  # of which there is no calibrated one
    assert main([*CALIBRATE, "--num_samples=100", "--num_steps=4"]) == 0
    assert json.loads(calibrated.read_text())["tables"].keys() == {"4", "5"}  # one does not replace the other
    for count in (4, 5):
        assert auto(f"--num_steps={count}")[1]


def test_tables_of_another_threshold_or_quantile_are_not_taken(calibrated, tmp_path, capsys):
    def is_calibrated(*arguments):
        drawn(tmp_path / "a.png", "--sampler=auto", *arguments)
        return "is calibrated" in capsys.readouterr().out

    dynamic = "--config.sampling.threshold=dynamic"
    assert is_calibrated()
    assert not is_calibrated("--config.sampling.threshold=static")
    assert not is_calibrated(dynamic)
    assert main([*CALIBRATE, "--num_samples=100", "--num_steps=5", dynamic]) == 0
    assert is_calibrated(dynamic)
    assert not is_calibrated(dynamic, "--config.sampling.quantile=0.9")
    assert not is_calibrated()
    assert set(json.loads(calibrated.read_text())["key"]) == {"digest", "threshold", "quantile"}


def test_comparing_takes_calibrated_tables_too(calibrated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scoresde.app.compare.COUNTS", (5, 6))
    monkeypatch.setattr("scoresde.app.compare.REFERENCE", 32)
    arguments = ["--mode=compare", "--num_samples=10", "--workdir=runs/toy", "--device=cpu"]
    assert main([*arguments, f"--output={tmp_path / 'c.png'}"]) == 0
    assert "auto: calibrated at 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "shown"),
    [
        (lambda text: "{", "cannot be read"),
        (lambda text: "[]", "does not hold tables"),
        (lambda text: text.replace('"digest": "', '"digest": "0'), "was calibrated for another model"),
        (lambda text: text.replace('"5":', '"6":'), "not fitted tables: lengths do not fit"),
        (lambda text: text.replace('"sigma_data":', '"sigma":'), "not fitted tables: 'sigma_data'"),
    ],
    ids=["json", "list", "model", "number", "field"],
)
def test_calibrated_tables_that_do_not_fit_are_named_and_can_be_made_anew(calibrated, capsys, damage, shown):
    calibrated.write_text(damage(calibrated.read_text()))
    assert main(AUTO) == 2
    said = capsys.readouterr().err
    assert shown in said
    assert "remove it, or run --mode calibrate" in said
    assert main([*CALIBRATE, "--num_samples=100", "--num_steps=5"]) == 0  # writes it anew
    assert main(AUTO) == 0
    calibrated.write_text(damage(calibrated.read_text()))
    calibrated.unlink()
    assert main(AUTO) == 0


def test_what_calibration_cannot_do_is_named(work, capsys, monkeypatch):
    for wrong, shown in (
        ("--num_samples=63", r"num_samples=63: calibration learns from this many noises, and needs at least 64"),
        ("--num_steps=51", r"num_steps=51: need 4 to 50"),
        ("--sampler=pc", r"sampler=pc: belongs to --mode sample"),
        ("--labels=1", r"labels=1: belongs to --mode sample"),
    ):
        assert_mistake(capsys, [*CALIBRATE, wrong], shown)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert_mistake(
            capsys, [*CALIBRATE, "--num_steps=5"], r"kept in runs/toy/checkpoints, which cannot be written to"
        )
    monkeypatch.setattr(calibrate_module, "GOOD", 1e-9)
    assert main([*CALIBRATE, "--num_samples=64", "--num_steps=5"]) == 2
    assert re.search(r"its probability flow did not converge; ends after 68 and 136 .* apart", capsys.readouterr().err)


def test_a_calibration_that_gains_nothing_leaves_the_table(work, capsys, monkeypatch):
    def kept(model, sampler, *_, **__):
        return Calibration(sampler, 0.1, 0.1)

    monkeypatch.setattr(calibrate_module, "calibrated_table", kept)
    assert main([*CALIBRATE, "--num_samples=64", "--num_steps=5"]) == 0
    assert "nothing better was found, the table stays" in capsys.readouterr().out
    assert not calibrated_path(newest("toy")).exists()


def test_a_real_calibration_is_never_worse(work, capsys):
    """On noises held out, as it says itself."""
    assert main([*CALIBRATE, "--num_samples=64", "--num_steps=5"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"5 evaluations: error (\S+) -> (\S+) on noises held out", said)
    assert found is None or float(found[2]) <= float(found[1])
    assert found or "nothing better was found" in said
    calibrated_path(newest("toy")).unlink(missing_ok=True)

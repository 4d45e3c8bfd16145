"""The tables of `--sampler auto` are fitted once to each model that is sampled from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samplers import FittedSampler
from scoresde.app.fitted_tables import best_tables, pilot_tables, read_calibrated, write_calibrated
from scoresde.app.flags import TrainedFlags
from scoresde.app.pilot_cache import calibrated_path, pilots_path
from scoresde.app.trained import Trained
from tests.mistakes import assert_mistake
from tests.runs import SAMPLE, drawn, newest


@pytest.fixture(autouse=True)
def nothing_kept(work):
    """No tables lie beside the checkpoint yet."""
    pilots_path(newest("toy")).unlink(missing_ok=True)
    calibrated_path(newest("toy")).unlink(missing_ok=True)


def trained(*overrides):
    return Trained.of(TrainedFlags(device="cpu", workdir="runs/toy"), overrides)


def test_auto_fits_its_tables_once_a_checkpoint(fits, tmp_path, capsys):
    def auto(*arguments):
        data, samples = drawn(tmp_path / "a.png", "--sampler=auto", *arguments)
        return data, samples, capsys.readouterr()

    first, samples, said = auto()
    assert "pilot" in said.err
    assert "6 samples by auto, 5 network evaluations each" in said.out
    assert np.isfinite(samples).all()
    again, _, said = auto()
    assert again == first
    assert "pilot" not in said.err
    assert "10 network evaluations" in auto("--num_steps=10")[2].out
    assert len(fits) == 1
    assert_mistake(
        capsys,
        [*SAMPLE, "--workdir=runs/toy", "--sampler=auto", "--num_steps=3"],
        r"num_steps=3: tables exist for 4 to 50 steps; .*--sampler trigonometric",
    )


def test_tables_are_fitted_anew_for_another_threshold_or_quantile(fits):
    threshold, lower = "--config.sampling.threshold=", "--config.sampling.quantile=0.9"
    cases = ([], [f"{threshold}static"], [f"{threshold}dynamic"], [f"{threshold}dynamic", lower])
    for count, overrides in enumerate(cases, start=1):
        for _ in range(2):
            pilot_tables(trained(*overrides))
            assert len(fits) == count, overrides
    pilot_tables(trained())
    assert len(fits) == len(cases)


def test_tables_come_back_from_the_file_as_they_were(fits):
    first, again = (pilot_tables(trained()) for _ in range(2))
    assert first.to_json() == again.to_json()
    for n, table in first.tables.items():
        assert torch.equal(table.weights, again.tables[n].weights)


def test_of_several_processes_one_writes_and_speaks(fits, capsys):
    found = trained()
    capsys.readouterr()
    pilot_tables(found, leader=False)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert not pilots_path(newest("toy")).exists()


def test_calibrated_tables_stand_in_the_place_of_the_pilot_s(fits):
    found = trained()
    pilots = pilot_tables(found)
    assert read_calibrated(found) == {}
    path = write_calibrated(found, {6: pilots.tables[6]})
    try:
        assert set(read_calibrated(found)) == {6}
        better = {6: pilots.tables[6], 7: pilots.tables[7]}
        write_calibrated(found, better)
        sampler, calibrated = best_tables(found)
        assert calibrated == [6, 7]
        assert sampler.tables.keys() == pilots.tables.keys()
        assert isinstance(sampler, FittedSampler)
        assert read_calibrated(trained("--config.sampling.threshold=static")) == {}
    finally:
        path.unlink()

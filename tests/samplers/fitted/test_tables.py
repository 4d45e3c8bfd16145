"""Fitted tables as a sampler: which steps and grids they take, under which SDE, and how they are kept."""

from __future__ import annotations

import json

import pytest
import torch

from samplers import FittedSampler, phi_to_clean, sample
from scoresde import VPSDE, ExactScoreModel, UsageError
from scoresde.data import nine_modes


def test_tables_go_through_json(model, piloted):
    again = FittedSampler.from_json(json.loads(json.dumps(piloted.to_json())))
    for n in (4, 8, 50):
        assert torch.equal(sample(model, piloted, 3, num_steps=n).x, sample(model, again, 3, num_steps=n).x)
        assert sample(model, again, 3, num_steps=n).nfe == n


SOUND = {"largest": 3.0, "sigma_data": 1.0, "noise_level": [2.0, 1.0], "weights": [[1.0], [1.0]]}
DAMAGES = {
    "nothing": None,
    "a list": [],
    "no table": {},
    "an empty table": {"8": {}},
    "a table of 2 steps for 8": {"8": SOUND},
    "rising noise levels": {"2": SOUND | {"noise_level": [1.0, 2.0]}},
    "noise levels above the largest": {"2": SOUND | {"largest": 1.0}},
    "data of no scale": {"2": SOUND | {"sigma_data": 0.0}},
    "weights of 3 steps": {"2": SOUND | {"weights": [[1.0]] * 3}},
    "weights that are no numbers": {"2": SOUND | {"weights": [["a"]] * 2}},
}


def test_sound_tables_are_tables():
    assert list(FittedSampler.from_json({"2": SOUND}).tables) == [2]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_tables_are_no_tables(damage):
    with pytest.raises(ValueError, match="not fitted tables"):
        FittedSampler.from_json(damage)


def test_other_steps_and_grids_are_named(model, piloted):
    for num_steps in (3, 51):
        with pytest.raises(UsageError, match=f"num_steps={num_steps}: tables exist for 4 to 50"):
            sample(model, piloted, 2, num_steps=num_steps)
    with pytest.raises(UsageError, match="grid: fitted tables have their own"):
        sample(model, piloted, 2, grid=phi_to_clean(model.sde, 8, 1.7))


def test_tables_of_another_sde_are_named(piloted):
    other = ExactScoreModel(nine_modes().to(dtype=torch.float64), VPSDE())
    with pytest.raises(UsageError, match=r"fitted under another SDE, with noise levels from 80 to .* has 152"):
        sample(other, piloted, 2, num_steps=8)

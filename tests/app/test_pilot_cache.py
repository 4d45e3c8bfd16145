"""What pilot runs found is kept beside a checkpoint, by all that it depends on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scoresde.app.pilot_cache import PilotCache, calibrated_path, pilots_path
from scoresde.checkpoint import Checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(1, "some digest", {}, {}, tmp_path / "step-1.safetensors")


class Search:
    """Counts how often it is asked, and gives the same each time."""

    def __init__(self, found):
        self.found = found
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.found


def find(checkpoint, search, settings, name="snr", valid=lambda found: True, **options):
    return PilotCache(checkpoint).find(name, settings, search, valid, **options)


def test_a_search_is_made_once_for_a_name_and_settings(checkpoint):
    search = Search(0.25)
    for _ in range(2):
        assert find(checkpoint, search, {"a": 1, "b": None}) == 0.25
    assert find(checkpoint, search, {"b": None, "a": 1}) == 0.25  # the order means nothing
    assert search.count == 1
    for settings in ({"a": 2, "b": None}, {"a": 1}, {"a": 1, "b": "None"}):
        find(checkpoint, search, settings)
    find(checkpoint, search, {"a": 1, "b": None}, name="tables")
    assert search.count == 5


def test_what_belongs_to_other_weights_counts_as_none(checkpoint):
    search = Search(0.25)
    find(checkpoint, search, {})
    find(replace(checkpoint, digest="another"), search, {})
    assert search.count == 2


@pytest.mark.parametrize(
    "damage", ["{", "[]", "3", '{"digest": "some digest"}', '{"digest": "some digest", "found": 3}']
)
def test_a_damaged_file_counts_as_none(checkpoint, damage):
    pilots_path(checkpoint.path).write_text(damage)
    search = Search(0.25)
    assert find(checkpoint, search, {}) == 0.25
    assert find(checkpoint, search, {}) == 0.25
    assert search.count == 1


def test_what_is_kept_is_checked_before_it_is_used(checkpoint):
    find(checkpoint, Search(7.0), {})
    assert find(checkpoint, Search(0.25), {}, valid=lambda found: found < 1) == 0.25
    assert find(checkpoint, Search(0.5), {}, valid=lambda found: found < 1) == 0.25


def test_of_several_processes_one_keeps_it(checkpoint):
    find(checkpoint, Search(0.25), {}, write=False)
    assert not pilots_path(checkpoint.path).exists()
    find(checkpoint, Search(0.25), {})
    assert json.loads(pilots_path(checkpoint.path).read_text())["digest"] == "some digest"


def test_a_place_that_cannot_be_written_is_no_mistake(checkpoint, tmp_path):
    pilots_path(checkpoint.path).mkdir()  # a folder has the name
    search = Search(0.25)
    assert find(checkpoint, search, {}) == 0.25
    assert search.count == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.pilots.json"]


def test_pilots_and_calibrated_tables_lie_beside_the_checkpoint(checkpoint, tmp_path):
    assert pilots_path(checkpoint.path) == tmp_path / "step-1.pilots.json"
    assert calibrated_path(checkpoint.path) == tmp_path / "step-1.calibrated.json"

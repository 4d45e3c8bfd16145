"""Features of many samples."""

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.codec import Scaling
from scoresde.metrics.features import CallableFeatures, FeatureSet, Values, extract
from scoresde.metrics.features.sets import BATCH, features_of


def images(count):
    return torch.randint(0, 17, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def convolved():
    """Features whose rounding would depend on how many images come at a time."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.Flatten(), torch.nn.Linear(576, 24))
    return CallableFeatures(lambda x: network(x.float()), 24, "convolved")


@pytest.mark.parametrize("size", [1, 7, 64])
def test_features_are_the_same_to_the_bit_however_samples_are_cut(size):
    x = images(100)
    network = convolved()
    whole = extract(network, x).features()
    parts = [features_of(network, part, "parts") for part in x.split(size)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_network_sees_full_batches_alone():
    seen = []

    def function(x):
        seen.append(len(x))
        return x.flatten(1).float()

    counts = []
    features_of(CallableFeatures(function, 64, "seen"), images(BATCH + 5), "samples", counts.append)
    assert seen == [BATCH, BATCH]
    assert counts == [BATCH, 5]


def test_values_are_those_of_the_samples_or_of_the_model():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(extract(Values((2,)), x).features(), x)
    scaled = Values((2,), Scaling(1.0, 2.0))
    assert torch.equal(extract(scaled, x).features(), (x - 1) / 2)
    tags = {network.tag for network in (Values((2,)), scaled, Values((2,), Scaling(1.0, 2.5)))}
    assert len(tags) == 3
    assert scaled.tag == Values((2,), Scaling(1.0, 2.0)).tag


def test_files_are_read_a_part_at_a_time_and_damage_is_named(tmp_path):
    x = torch.randn(10, 3)
    files = []
    for k, part in enumerate(x.split(4)):
        files.append(tmp_path / f"{k}.npz")
        np.savez(files[-1], features=part.numpy())
    found = FeatureSet(files, 10, 3, "tag")
    assert torch.equal(found.features(), x)
    assert [len(chunk) for chunk in found.chunks()] == [4, 4, 2]
    files[1].write_bytes(files[1].read_bytes()[:50])
    with pytest.raises(UsageError, match=r"1\.npz: is damaged .*remove it, and the same command computes it again"):
        found.features()


def test_features_of_another_number_are_refused():
    with pytest.raises(UsageError, match=r"features='wrong': gives \(32, 64\) of 32 samples, need \(32, 65\)"):
        extract(CallableFeatures(lambda x: x.flatten(1).float(), 65, "wrong"), images(5))
    with pytest.raises(UsageError, match="mine: 5 of 5 samples have features that are NaN"):
        extract(CallableFeatures(lambda x: x.flatten(1) * torch.nan, 64, "broken"), images(5), source="mine")
    with pytest.raises(UsageError, match="features='values/2': belong to no classifier"):
        Values((2,)).logits(torch.zeros(1, 2))

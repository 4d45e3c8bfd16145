"""The noise of a sample depends on its seed, its index and the interval, and is normal."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from samplers import Noise
from samplers.noise import philox
from scoresde import UsageError


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(device, counter, key, expected):
    words = philox(tuple(torch.tensor([c], device=device) for c in counter), key)
    assert " ".join(f"{int(w):08x}" for w in words) == expected


def test_a_sample_is_the_same_in_every_batch(device):
    shape = (3, 5, 5)
    alone = [Noise(7, torch.tensor([i], device=device)).normal(4, shape) for i in range(6)]
    shuffled = Noise(7, torch.tensor([4, 2, 5, 0, 1, 3], device=device)).normal(4, shape)
    assert torch.equal(shuffled, torch.cat([alone[i] for i in (4, 2, 5, 0, 1, 3)]))


@pytest.mark.parametrize("change", ["seed", "high seed", "index", "high index", "interval"])
def test_every_part_of_the_key_matters(device, change):
    indices = torch.arange(2000, device=device)
    first = Noise(1, indices).normal(3, (2,), torch.float64).flatten()
    second = (
        {
            "seed": lambda: Noise(2, indices),
            "high seed": lambda: Noise(1 + 2**40, indices),
            "index": lambda: Noise(1, indices + 2000),
            "high index": lambda: Noise(1, indices + 2**40),
            "interval": lambda: Noise(1, indices),
        }[change]()
        .normal(3 + (change == "interval"), (2,), torch.float64)
        .flatten()
    )
    # the correlation of 4000 independent pairs is N(0, 1/4000): five deviations
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / 4000**0.5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_normality_at_the_level_of_one_in_a_million(device, size):
    x = Noise(0, torch.arange(40_000 // size, device=device)).normal(0, (size,), torch.float64).flatten().cpu()
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-6


def test_entries_of_a_sample_are_uncorrelated(device):
    x = Noise(0, torch.arange(20_000, device=device)).normal(0, (9,), torch.float64)
    off_diagonal = torch.corrcoef(x.T) - torch.eye(9, dtype=x.dtype, device=device)
    assert off_diagonal.abs().max() < 5.5 / 20_000**0.5  # 36 pairs, beyond five deviations


def test_no_random_state_is_touched(device):
    before = torch.get_rng_state()
    Noise(0, torch.arange(4, device=device)).normal(0, (3,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(UsageError, match=f"seed={seed}"):
        Noise(seed, torch.arange(1))

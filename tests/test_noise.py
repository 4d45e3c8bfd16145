"""The noise of a sample depends on its seed, its index and the interval, and is normal."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from scoresde import Noise, UsageError
from scoresde.noise import Path, _places, mix


def test_the_hash_is_splitmix(device):
    """The first outputs of SplitMix64 from state 0, as its reference implementations give them."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    gamma = 0x9E3779B97F4A7C15
    assert [mix((k + 1) * gamma % 2**64) for k in range(5)] == known
    assert [word % 2**64 for word in _places(5, device).tolist()] == known


def test_several_draws_at_once_are_the_same(device):
    noise = Noise(3, torch.arange(5, device=device))
    together = noise.normals([7, 0, 4], (3, 2), torch.float64)
    for row, draw in enumerate((7, 0, 4)):
        assert torch.equal(together[row], noise.normal(draw, (3, 2), torch.float64))


def coarse_and_fine(noise, points, clock):
    """Increments between points, not divided by their deviations, for all points and for every third."""
    result = []
    for kept in (points, points[::3]):
        path = Path(noise, clock, kept)
        z = path.normals(range(1, len(kept)), (2,), torch.float64)
        c = torch.tensor([clock(place / 2**Path.DEPTH) for place in path.points], dtype=torch.float64)
        result.append((z * c.diff().sqrt()[:, None, None].to(z.device), z))
    return result


@pytest.mark.parametrize("clock", [lambda u: u, lambda u: math.exp(20 * u - 10)], ids=["even", "exponential"])
def test_increments_of_a_path_add_up_on_any_grid(device, clock):
    noise = Noise(5, torch.arange(2000, device=device))
    points = [0.0, 0.013, 0.2, 0.33, 0.5, 0.50001, 0.62, 0.9, 0.97, 1.0]
    (fine, unit), (coarse, _) = coarse_and_fine(noise, points, clock)
    torch.testing.assert_close(
        fine.reshape(3, 3, 2000, 2).sum(1), coarse, rtol=1e-9, atol=1e-9 * float(coarse.abs().max())
    )
    assert stats.kstest(unit.flatten().cpu().numpy(), "norm").pvalue > 1e-6
    rows = torch.corrcoef(unit.flatten(1))
    assert (
        rows - torch.eye(9, dtype=rows.dtype, device=device)
    ).abs().max() < 5.5 / 4000**0.5  # increments are independent


def test_a_path_is_the_same_in_every_batch_and_order(device):
    points = [0.0, 0.3, 0.31, 0.8]
    whole = Path(Noise(5, torch.arange(6, device=device)), lambda u: u, points)
    part = Path(Noise(5, torch.arange(2, 5, device=device)), lambda u: u, points)
    forward = whole.normals([1, 2, 3], (2,))
    assert torch.equal(forward[:, 2:5], part.normals([1, 2, 3], (2,)))
    assert torch.equal(forward[0], whole.normals([1], (2,))[0])  # asked again


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

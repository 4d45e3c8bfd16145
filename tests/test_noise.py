"""The noise of a sample depends on its seed, its index and the draw, and has the distribution that it is said to."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from scoresde import BatchNoise, Noise, UsageError
from scoresde.noise import Path, _normals, _places, _uniforms, mix


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


def assert_independent(first, second):
    """Two draws of n numbers: the correlation of n independent pairs is N(0, 1/n); five deviations."""
    pairs = torch.stack([first.flatten(), second.flatten()]).double()
    assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / pairs.shape[1] ** 0.5


@pytest.mark.parametrize("change", ["seed", "high seed", "index", "high index", "draw", "stream"])
def test_every_part_of_the_key_matters(device, change):
    indices = torch.arange(2000, device=device)
    changed = {
        "seed": lambda: Noise(2, indices),
        "high seed": lambda: Noise(1 + 2**40, indices),
        "index": lambda: Noise(1, indices + 2000),
        "high index": lambda: Noise(1, indices + 2**40),
        "draw": lambda: Noise(1, indices),
        "stream": lambda: Noise(1, indices).stream("a"),
    }[change]()
    first = Noise(1, indices).normal(3, (2,), torch.float64)
    assert_independent(first, changed.normal(3 + (change == "draw"), (2,), torch.float64))


def test_a_stream_is_the_same_samples_with_noise_of_its_own(device):
    indices = torch.arange(2000, device=device)
    one, again, other = (Noise(1, indices).stream(name) for name in ("a", "a", "b"))
    assert torch.equal(one.normal(0, (2,)), again.normal(0, (2,)))
    assert torch.equal(one.indices, indices)
    part = Noise(1, indices[7:9]).stream("a")
    assert torch.equal(part.normal(0, (2,)), one.normal(0, (2,))[7:9])
    assert_independent(one.normal(0, (2,)), other.normal(0, (2,)))
    assert_independent(one.stream("b").normal(0, (2,)), other.normal(0, (2,)))


def test_normality_at_the_level_of_one_in_a_million(device):
    for size in (1, 2, 3, 4, 7):
        x = Noise(0, torch.arange(40_000 // size, device=device)).normal(0, (size,), torch.float64).flatten().cpu()
        assert stats.kstest(x.numpy(), "norm").pvalue > 1e-6, size


def test_uniformity_at_the_level_of_one_in_a_million(device):
    for dtype in (torch.float32, torch.float64):
        u = Noise(0, torch.arange(20_000, device=device)).uniform(0, (2,), dtype)
        assert (u.shape, u.dtype) == ((20_000, 2), dtype)
        assert 0 < u.min() < u.max() < 1
        assert stats.kstest(u.flatten().double().cpu().numpy(), "uniform").pvalue > 1e-6, dtype


def test_the_ends_of_the_range_are_kept_off():
    """The largest and the smallest half that there are: float32 must not round them to 0, 1 or infinity."""
    halves = torch.tensor([2**31 - 1, -(2**31), 2**31 - 64, 0], dtype=torch.int32)
    for dtype in (torch.float32, torch.float64):
        z = _normals(halves, dtype)
        assert z.isfinite().all(), dtype
        assert z.abs().max() < 5.43, dtype
        u = _uniforms(halves, dtype)
        assert 0 < u.min() < u.max() < 1, dtype


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


# the noise of a training step


def of_batch(device, places=None, step=3, seed=5, batch_size=12):
    places = range(batch_size) if places is None else places
    return BatchNoise(seed, step, batch_size, torch.tensor(list(places), device=device))


DRAWS = {
    "normal": lambda noise: noise.normal("a", (2, 3)),
    "uniform": lambda noise: noise.uniform("a", (2, 3)),
    "one uniform": lambda noise: noise.uniform("a"),
    "stratified": lambda noise: noise.stratified("a"),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_what_a_place_draws_does_not_depend_on_how_the_batch_is_divided(draw, device):
    whole = draw(of_batch(device))
    for processes in (2, 3, 12):
        size = 12 // processes
        parts = [draw(of_batch(device, range(k * size, (k + 1) * size))) for k in range(processes)]
        assert torch.equal(torch.cat(parts), whole), processes
    assert torch.equal(draw(of_batch(device, [7, 2])), whole[[7, 2]])
    assert torch.equal(draw(of_batch(device)), whole)  # asked again


@pytest.mark.parametrize("kind", ["normal", "uniform", "stratified"])
def test_seeds_steps_and_names_have_numbers_of_their_own(kind, device):
    def draw(name="a", **other):
        return getattr(of_batch(device, batch_size=4000, **other), kind)(name, *[()] * (kind == "normal"))

    first = draw()
    for other in ({"seed": 6}, {"step": 4}, {"name": "b"}):
        assert_independent(first, draw(**other))


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_each_place_is_uniform_over_the_steps(kind, device):
    """Two places of a batch of 4 in 2,000 steps: Kolmogorov and Smirnov at level 1e-3 for each."""
    noises = [of_batch(device, [0, 3], step, batch_size=4) for step in range(2000)]
    u = torch.stack([getattr(noise, kind)("a", dtype=torch.float64) for noise in noises], 1)
    assert u.shape == (2, 2000)
    assert 0 < u.min() < u.max() < 1
    for place in u:
        assert stats.kstest(place.cpu().numpy(), "uniform").pvalue > 1e-3


def test_stratified_numbers_have_a_cell_each_in_random_order(device):
    for dtype in (torch.float32, torch.float64):
        u = of_batch(device, batch_size=1000).stratified("a", dtype).double()
        cells = (u * 1000).sort().values - torch.arange(1000, device=device)
        rounding = 1000 * torch.finfo(dtype).eps  # of u, in cells
        assert cells.min() > -rounding, dtype
        assert cells.max() < 1 + rounding, dtype
        # the rank correlation with the place is that of chance, level 1e-4
        assert stats.spearmanr(range(1000), u.cpu().numpy()).pvalue > 1e-4, dtype
        # and so is the place within a cell: 1000 numbers, Kolmogorov and Smirnov at level 1e-4
        assert stats.kstest(cells.clamp(0, 1).cpu().numpy(), "uniform").pvalue > 1e-4, dtype


def test_the_numbers_of_a_batch_have_shapes_types_and_distributions(device):
    noise = of_batch(device, batch_size=4000)
    z, u = noise.normal("z", (2, 3), torch.float64), noise.uniform("u", (2, 3), torch.float64)
    assert z.shape == u.shape == (4000, 2, 3)
    assert z.dtype == u.dtype == torch.float64
    assert noise.normal("z", (2,)).dtype == noise.uniform("u").dtype == noise.stratified("t").dtype == torch.float32
    assert noise.uniform("u").shape == noise.stratified("t").shape == (4000,)
    assert stats.kstest(z.flatten().cpu().numpy(), "norm").pvalue > 1e-6
    assert stats.kstest(u.flatten().cpu().numpy(), "uniform").pvalue > 1e-6


def test_fresh_noise_follows_the_global_random_state(device):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(BatchNoise.fresh(5, device).normal("a", (2,)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[2], BatchNoise.fresh(5, device).normal("a", (2,)))


def test_a_stratified_number_is_below_one_in_every_type():
    """In a short type the highest cell of a batch is narrower than the rounding of its numbers."""
    for dtype in (torch.float16, torch.bfloat16):
        u = of_batch("cpu", batch_size=4000).stratified("a", dtype)
        assert u.max() == 1 - torch.finfo(dtype).eps / 2, dtype


def test_batch_noise_touches_no_random_state(device):
    before = torch.get_rng_state()
    for draw in DRAWS.values():
        draw(of_batch(device))
    assert torch.equal(before, torch.get_rng_state())

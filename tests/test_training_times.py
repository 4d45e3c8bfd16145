"""Training times: in the range, distributed as declared, and spread evenly over a batch."""

import itertools

import pytest
import torch
from scipy import stats

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    BatchNoise,
    DiscreteTimes,
    LadderTimes,
    LogNormalNoiseLevels,
    RectifiedFlowSDE,
    UniformTimes,
    UsageError,
)
from scoresde.objective import TrainingTimes
from tests.losses import whole_batch

TIMES = {
    "uniform": UniformTimes(),
    "levels": DiscreteTimes(),
    "ladder": LadderTimes(),
    "log normal": LogNormalNoiseLevels(),
}


def sampled(times, sde, num, device, seed=1):
    """The times of one batch, as an objective draws them."""
    return times.at(sde, whole_batch(num, device, seed).stratified("times"))


def test_times_lie_in_the_range_and_repeat(sde, device):
    for name, times in TIMES.items():
        t = sampled(times, sde, 5000, device)
        assert t.shape == (5000,)
        assert t.dtype == torch.float32
        assert t.device.type == device.type
        low, high = torch.tensor([sde.t_min, sde.t_max])  # as float32 has them
        assert low <= t.min() < t.max() <= high, name
        assert sde.log_snr(t).isfinite().all(), name
        assert torch.equal(t, sampled(times, sde, 5000, device)), name
        assert not torch.equal(t, sampled(times, sde, 5000, device, seed=2)), name


def test_the_ends_of_the_unit_interval_give_times_in_the_range(sde, device):
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([2.0**-25, 1 - torch.finfo(dtype).eps / 2], dtype=dtype, device=device)
        low, high = torch.tensor([sde.t_min, sde.t_max], dtype=dtype, device=device)
        for name, times in TIMES.items():
            t = times.at(sde, u)
            assert t.dtype == dtype, name
            assert (low <= t).all(), name
            assert (t <= high).all(), name


def share(times, sde, t):
    """The declared distribution function of a time, evaluated at it."""
    if isinstance(times, LogNormalNoiseLevels):
        return torch.special.ndtr((sde.noise_level(t.double()).log() - times.mean) / times.std)
    return (t.double() - sde.t_min) / (sde.t_max - sde.t_min)


CONTINUOUS = [UniformTimes(), LogNormalNoiseLevels(-1.0, 0.7)]


def test_a_batch_covers_its_distribution_evenly(device):
    """One time in each of n equally likely cells; float32 rounds a few over an edge, never by more than 1e-3 cells."""
    num = 100
    edges = torch.arange(num, dtype=torch.float64, device=device)
    wide = (VPSDE(), VESDE(sigma_min=1e-4), EDMSDE(1e-4, 100.0), RectifiedFlowSDE(1e-4, 0.9999))
    for times, sde in itertools.product(CONTINUOUS, wide):
        cells = (share(times, sde, sampled(times, sde, num, device)) * num).sort().values
        assert (cells > edges - 1e-3).all(), (times, sde)
        assert (cells < edges + 1 + 1e-3).all(), (times, sde)


@pytest.mark.parametrize("times", CONTINUOUS, ids=["uniform", "log normal"])
def test_each_place_in_a_batch_has_the_declared_distribution(times, device):
    """The first time of 3,000 batches of 4: Kolmogorov and Smirnov at level 1e-3."""
    sde, place = EDMSDE(1e-4, 100.0), torch.zeros(1, dtype=torch.long, device=device)
    u = torch.cat([BatchNoise(0, step, 4, place).stratified("times") for step in range(3000)])
    assert stats.kstest(share(times, sde, times.at(sde, u)).cpu().numpy(), "uniform").pvalue > 1e-3


def test_neighbours_in_a_batch_are_not_sorted(device):
    """The cells are in random order: the rank correlation with the place is that of chance, level 1e-4."""
    t = sampled(UniformTimes(), VPSDE(), 1000, device)
    assert stats.spearmanr(range(1000), t.cpu().numpy()).pvalue > 1e-4


@pytest.mark.parametrize("num_levels", [1, 7, 1000])
def test_discrete_times_are_the_levels_of_the_chain(num_levels, device):
    t = sampled(DiscreteTimes(num_levels), VPSDE(), 20 * num_levels, device)
    levels = torch.arange(1, num_levels + 1, device=device) / num_levels
    assert torch.isin(t, levels).all()
    count = torch.bincount((t * num_levels).round().long(), minlength=num_levels + 1)[1:]
    # 20 cells a level; float32 moves the time at a cell's edge to its neighbour at most
    assert (count - 20).abs().max() <= 1
    assert count.min() >= 1


def test_the_levels_of_a_chain_end_at_t_max(device):
    sde = EDMSDE(t_min=0.002, t_max=80.0)
    t = sampled(DiscreteTimes(40), sde, 400, device)
    torch.testing.assert_close(t.unique(), torch.arange(2.0, 81, 2, device=device))


MISTAKES = {
    "std": (lambda: LogNormalNoiseLevels(std=0.0), r"std=0\.0"),
    "num_levels": (lambda: DiscreteTimes(0), "num_levels=0"),
    "rungs": (lambda: LadderTimes(1), "num_levels=1"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_training_times_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        TrainingTimes()

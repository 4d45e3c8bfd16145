"""Resampling against SciPy's upfirdn, and sizes that do not halve evenly."""

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn

from scoresde.networks.resampling import Resampler

KERNELS = [(1.0, 3.0, 3.0, 1.0), (1.0, 5.0, 10.0, 10.0, 5.0, 1.0)]


def along_every_axis(x, taps, up, down, before, length):
    """SciPy's polyphase filter along each axis, from `before` values in front of the first to a length."""
    for axis in range(x.ndim):
        x = upfirdn(taps, x, up, 1, axis=axis)
        x = np.take(x, np.arange(before, before + length(axis) * down, down), axis=axis)
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_filters_are_scipys(dims, kernel):
    x = np.random.default_rng(0).normal(size=(6, 8, 4)[:dims])
    taps = np.array(kernel) / sum(kernel)
    batch = torch.from_numpy(x)[None, None]
    resampler = Resampler(dims, kernel).double()
    centre = len(kernel) // 2
    down = along_every_axis(x, taps, 1, 2, centre, lambda axis: x.shape[axis] // 2)
    np.testing.assert_allclose(resampler.down(batch)[0, 0], down, atol=1e-7)  # the kernel is kept in float32
    up = along_every_axis(x, 2 * taps, 2, 1, centre - 1, lambda axis: x.shape[axis] * 2)
    np.testing.assert_allclose(resampler.up(batch)[0, 0], up, atol=1e-6)


@pytest.mark.parametrize("kernel", [(), *KERNELS])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 5), (8, 7)])
def test_a_constant_stays_one_away_from_the_borders_and_sizes_return(kernel, size):
    x = torch.ones(1, 3, *size)
    resampler = Resampler(2, kernel)
    small = resampler.down(x)
    assert small.shape[2:] == tuple(-(-n // 2) for n in size)
    again = resampler.up(small, size)
    assert again.shape == x.shape
    if not kernel:
        assert torch.equal(again, x)


def test_without_a_kernel_it_means_and_repeats():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert torch.equal(Resampler(2).down(x), torch.tensor([[[[2.0, 3.5]]]]))
    assert torch.equal(Resampler(2).up(x[:, :, :1, :2]), torch.tensor([[[[0.0, 0, 1, 1], [0, 0, 1, 1]]]]))

"""Linear operators beside other libraries and direct sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
import torch.nn.functional as F

from scoresde.operators import (
    BlockAverage,
    Blur,
    FourierSubsampling,
    Grey,
    Mask,
    MatrixOperator,
    gaussian_kernel,
    motion_kernel,
    random_projection,
)
from tests.operators.cases import SHAPES, kernel, randn, some_frequencies

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
SCIPY_MODES = {"circular": "wrap", "reflect": "mirror", "replicate": "nearest", "zeros": "constant"}


def convolved(x, weights, padding):
    """Every channel of every sample convolved by scipy."""
    if padding == "none":
        planes = [scipy.signal.convolve(plane, weights, "valid", "direct") for plane in x.flatten(0, 1).numpy()]
    else:
        mode = SCIPY_MODES[padding]
        planes = [scipy.ndimage.convolve(plane, weights.numpy(), mode=mode) for plane in x.flatten(0, 1).numpy()]
    planes = torch.from_numpy(np.stack(planes))
    return planes.reshape(*x.shape[:2], *planes.shape[1:])


# --- averages -------------------------------------------------------------------------------------------------------


@each_shape
def test_block_averages_are_those_of_pooling(shape):
    x = randn(3, *shape)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(shape) - 2]
    torch.testing.assert_close(BlockAverage(shape, 2)(x), pool(x, 2), rtol=1e-13, atol=1e-14)


@each_shape
def test_grey_is_the_mean_of_the_channels_or_a_weighted_sum(shape):
    x = randn(3, *shape)
    torch.testing.assert_close(Grey(shape)(x), x.mean(1, keepdim=True), rtol=1e-13, atol=1e-14)
    weights = [0.3, 0.6, 0.1][: shape[0]]
    expected = sum(weight * x[:, c : c + 1] for c, weight in enumerate(weights))
    torch.testing.assert_close(Grey(shape, weights)(x), expected, rtol=1e-13, atol=1e-14)


# --- blur -----------------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [*SCIPY_MODES, "none"])
def test_blur_is_the_convolution_of_scipy(shape, size, padding):
    """Kernels of even size too, whose centre is the entry size / 2."""
    x, weights = randn(2, *shape), kernel(shape, size)
    expected = convolved(x, weights, padding)
    whole = Blur(shape, weights, padding)
    torch.testing.assert_close(whole(x), expected, rtol=1e-12, atol=1e-12)
    for stride in (2, 3):
        strided = Blur(shape, weights, padding, stride)
        kept = expected[(slice(None), slice(None), *[slice(None, None, stride)] * (len(shape) - 1))]
        torch.testing.assert_close(strided(x), kept, rtol=1e-12, atol=1e-12)


@each_shape
def test_circular_blur_is_a_sum_of_rolled_samples(shape):
    """y_i = sum_m k_m x_{i - m + centre}, with a kernel of three in one dimension and two in the others."""
    dims = tuple(range(2, 1 + len(shape)))
    sizes = (3, 2, 2)[: len(shape) - 1]
    weights, x = randn(*sizes, seed=4), randn(2, *shape)
    expected = torch.zeros_like(x)
    for place in itertools.product(*map(range, sizes)):
        moved = x.roll(
            [m - size // 2 for m, size in zip(place, sizes, strict=True)], (*dims, 1 + len(shape))[: len(sizes)]
        )
        expected += weights[place] * moved
    torch.testing.assert_close(Blur(shape, weights)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_gaussian_kernel_is_a_product_of_its_lines_and_sums_to_one(ndim):
    line = gaussian_kernel(1.2, 1)
    expected = line
    for _ in range(ndim - 1):
        expected = expected[..., None] * line
    found = gaussian_kernel(1.2, ndim)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert found.sum().item() == pytest.approx(1, rel=1e-14)
    assert found.shape == (9,) * ndim  # 3 deviations to either side
    assert gaussian_kernel(1.2, ndim, radius=1).shape == (3,) * ndim
    assert (line[5] / line[4]).item() == pytest.approx(np.exp(-0.5 / 1.2**2), rel=1e-14)


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 4.5])
def test_motion_along_an_axis_is_a_line_of_hats(length):
    """A point between two entries is shared by its distances, so entry i has the mean of max(0, 1 - |p - i|)."""
    across = motion_kernel(length)
    reach = len(across) // 2
    assert reach == np.ceil(length / 2)
    first, last = (np.clip(end - np.arange(-reach, reach + 1), -1, 1) for end in (-length / 2, length / 2))
    hats = (last - last * np.abs(last) / 2 - first + first * np.abs(first) / 2) / length  # their integral
    np.testing.assert_allclose(across[reach], hats, atol=5e-4)
    assert across.sum().item() == pytest.approx(across[reach].sum().item(), rel=1e-14)  # nothing beside the line
    torch.testing.assert_close(motion_kernel(length, 90.0), across.mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(motion_kernel(length, direction=(1.0,)), across[reach], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(motion_kernel(length, direction=(0.0, 2.0)), across, rtol=1e-12, atol=1e-14)
    deep = motion_kernel(length, direction=(0.0, 0.0, 1.0))
    torch.testing.assert_close(deep[reach], across, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 20.0, 45.0, 90.0, 110.0])
def test_a_motion_kernel_sums_to_one_and_lies_along_its_line(angle):
    found = motion_kernel(5.0, angle)
    assert found.sum().item() == pytest.approx(1, rel=1e-14)
    assert (found >= 0).all()
    torch.testing.assert_close(found.flip(0, 1), found, rtol=0, atol=1e-14)
    places = torch.arange(-3.0, 4.0, dtype=torch.float64)
    covariance = torch.stack(
        [
            torch.stack([(found * places[:, None] ** 2).sum(), (found * places[:, None] * places).sum()]),
            torch.stack([(found * places[:, None] * places).sum(), (found * places**2).sum()]),
        ]
    )
    along = torch.tensor([np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    assert (along @ covariance @ along).item() > 5**2 / 12  # that of the line, and more by the sharing
    assert (covariance.trace() - along @ covariance @ along).item() < 0.25  # no more than a point shared by two


# --- Fourier, masks and matrices ------------------------------------------------------------------------------------


@each_shape
def test_frequencies_are_those_of_numpy(shape):
    x, chosen = randn(2, *shape), some_frequencies(shape)
    whole = np.fft.fftn(x.numpy(), axes=tuple(range(2, x.ndim)), norm="ortho")
    expected = torch.from_numpy(whole[:, :, chosen.numpy()])
    found = FourierSubsampling(shape, chosen)(x)
    torch.testing.assert_close(found[:, 0], expected.real, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found[:, 1], expected.imag, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("width", "acceleration", "lines", "low"), [(64, 4, 16, 5), (50, 8, 6, 4), (10, 100, 1, 1)])
def test_lines_of_the_lowest_frequencies_and_others_at_random(width, acceleration, lines, low):
    first, again, other = (FourierSubsampling.lines((1, 6, width), acceleration, seed=seed) for seed in (0, 0, 1))
    chosen = first.frequencies[0]
    assert torch.equal(first.frequencies, chosen.expand(6, width))
    assert chosen.sum() == lines
    assert first.measured_shape == (2, 1, 6 * lines)
    assert chosen[np.argsort(np.abs(np.fft.fftfreq(width)), kind="stable")[:low]].all()
    assert torch.equal(first.frequencies, again.frequencies)
    assert lines == low or not torch.equal(first.frequencies, other.frequencies)


def test_all_frequencies_are_an_isometry():
    shape = (2, 5, 6)
    operator = FourierSubsampling(shape, torch.ones(5, 6, dtype=torch.bool))
    assert (operator.eigenbasis.values == 1).all()
    x = randn(2, *shape)
    torch.testing.assert_close(operator.adjoint(operator(x)), x, rtol=1e-13, atol=1e-13)


def test_masks_keep_what_they_show_in_order(device):
    shape = (2, 4, 5)
    x = torch.arange(2.0 * 40, device=device).reshape(2, *shape)
    seen = torch.zeros(4, 5, dtype=torch.bool, device=device)
    seen[1, 2] = seen[3, 0] = True
    mask = Mask(seen, shape)
    assert mask(x)[0].tolist() == [7, 15, 27, 35]
    filled = mask.adjoint(mask(x))
    assert torch.equal(filled[:, :, seen], x[:, :, seen])
    assert (filled[:, :, ~seen] == 0).all()


def test_boxes_are_hidden_or_shown():
    shape = (3, 6, 8)
    around, inside = Mask.box(shape, (1, 2), (4, 7)), Mask.box(shape, (1, 2), (4, 7), inside=True)
    assert around.measured_shape == (3 * (48 - 15),)
    assert inside.measured_shape == (3 * 15,)
    assert torch.equal(around.seen, ~inside.seen)
    assert inside.seen[:, 1:4, 2:7].all()
    assert Mask.box(shape, (2,), (5,)).measured_shape == (3 * 6 * 5,)  # columns
    assert Mask.box((9,), (0,), (4,)).seen.tolist() == [False] * 4 + [True] * 5


@pytest.mark.parametrize(("share", "count"), [(0.5, 72), (0.1, 14), (1e-9, 1), (1 - 1e-9, 143)])
def test_random_masks_show_a_share(share, count):
    shape = (3, 6, 8)
    mask = Mask.random(shape, share, seed=3)
    assert mask.measured_shape == (count,)
    assert torch.equal(mask.seen, Mask.random(shape, share, seed=3).seen)
    assert not torch.equal(mask.seen, Mask.random(shape, share, seed=4).seen)
    places = Mask.random(shape, share, seed=3, dims=2)
    assert places.seen.sum() == 3 * min(max(round(48 * share), 1), 47)
    assert torch.equal(places.seen, places.seen[:1].expand(shape))


def test_a_matrix_acts_on_flattened_samples():
    matrix, x = randn(3, 8), randn(2, 2, 4, seed=1)
    expected = torch.stack([matrix @ sample.flatten() for sample in x])
    torch.testing.assert_close(MatrixOperator(matrix, (2, 4))(x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(MatrixOperator(matrix)(x.flatten(1)), expected, rtol=1e-13, atol=1e-13)


def test_a_random_projection_keeps_squares_on_average():
    """E|A x|^2 = |x|^2: for |x| = 1 a mean of 100,000 squares, whose standard error is sqrt(2 / 100,000)."""
    first, again, other = (random_projection((1000,), 100, seed) for seed in (0, 0, 1))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    mean = first.values.square().sum(0).mean().item()
    assert abs(mean - 1) < 5 * (2 / 100_000) ** 0.5  # level 6e-7

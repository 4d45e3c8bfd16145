"""Resizing: what Pillow and torch compute, on any number of axes, and one map in training and sampling."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from scoresde import UsageError
from scoresde.resize import KERNELS, resize

each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def images(*sizes, seed=0):
    return torch.rand(2, 3, *sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (32, 32), (16, 24)])
def test_it_is_torchs_antialiased_resizing(kernel, size, device):
    x = images(16, 20).to(device)
    expected = F.interpolate(x, size=size, mode=kernel, antialias=True)
    torch.testing.assert_close(resize(x, size, kernel), expected, rtol=1e-6, atol=1e-6)  # torch's weights are float32


@pytest.mark.parametrize(("kernel", "filter_"), [("bicubic", "BICUBIC"), ("bilinear", "BILINEAR"), ("area", "BOX")])
def test_it_is_pillows_resizing_up_to_rounding(kernel, filter_):
    """So a model trained on images that `data.image_size` made small sees what an upsampler makes small itself."""
    levels = (255 * images(28, 28)[0, :1]).round()
    picture = Image.fromarray(levels[0].byte().numpy())
    expected = np.asarray(picture.resize((14, 14), Image.Resampling[filter_])).astype(float)
    found = resize(levels[None], 14, kernel)[0, 0].clamp(0, 255)
    assert np.abs(found.numpy() - expected).max() < 1.25  # it rounds after each axis


@each_kernel
@pytest.mark.parametrize("antialias", [True, False])
def test_constants_stay_and_linear_maps_commute_with_scaling(kernel, antialias):
    """Its weights sum to 1: resizing in the model's units is resizing raw values."""
    x = images(12, 9)
    for size in (6, 5, 18):
        small = resize(x, size, kernel, antialias)
        assert small.shape == (2, 3, size, size)
        torch.testing.assert_close(resize(3 * x - 2, size, kernel, antialias), 3 * small - 2)
        ones = resize(torch.ones_like(x), size, kernel, antialias)
        torch.testing.assert_close(ones, torch.ones_like(ones))


def test_area_is_the_mean_of_blocks_and_repeats_them():
    x = images(12, 6)
    small = resize(x, (4, 2), "area")
    torch.testing.assert_close(small, F.avg_pool2d(x, 3))
    torch.testing.assert_close(resize(small, (12, 6), "area"), small.repeat_interleave(3, 2).repeat_interleave(3, 3))
    torch.testing.assert_close(resize(x, (5, 4), "area"), F.interpolate(x, (5, 4), mode="area"), rtol=0.4, atol=0.4)


@each_kernel
def test_axes_are_independent_and_any_number(kernel):
    series = images(12)
    assert resize(series, 6, kernel).shape == (2, 3, 6)
    volume = series[..., None, None] * images(4)[..., None, :, None] * images(10, seed=1)[..., None, None, :]
    found = resize(volume, (6, 4, 5), kernel)
    parts = (resize(part, size, kernel) for part, size in ((series, 6), (images(4), 4), (images(10, seed=1), 5)))
    first, second, third = parts
    torch.testing.assert_close(found, first[..., None, None] * second[..., None, :, None] * third[..., None, None, :])


def test_antialiasing_removes_what_the_smaller_size_cannot_hold():
    stripes = (torch.arange(32) % 2 * 2.0 - 1).expand(1, 1, 32, 32)
    for kernel in ("bicubic", "bilinear"):
        inner = resize(stripes, 8, kernel)[..., 2:-2]
        assert inner.abs().max() < 0.05
        assert resize(torch.eye(32)[None, None], 8, kernel, antialias=False).abs().max() > 0.2
    point = torch.zeros(1, 1, 33)
    point[..., 16] = 1
    assert resize(point, 11, "bilinear", antialias=False)[..., 5] == 1
    assert resize(point, 11, "bilinear")[..., 5] == pytest.approx(1 / 3)


def test_the_size_that_there_is_changes_nothing(device):
    x = images(7, 5).to(device)
    assert torch.equal(resize(x, (7, 5)), x)


def test_mistakes_are_named():
    for arguments, message in {
        (images(4, 4), 2, "lanczos"): "kernel 'lanczos'",
        (images(4, 4), (2, 2, 2)): r"size=\(2, 2, 2\): need 2 positive numbers",
        (images(4, 4), 0): r"size=0: need 2 positive",
        (torch.zeros(2, 3), 2): r"x of shape \(2, 3\): has no axes",
        (torch.zeros(2, 3, 4, dtype=torch.uint8), 2): "x of type torch.uint8",
    }.items():
        with pytest.raises(UsageError, match=message):
            resize(*arguments)

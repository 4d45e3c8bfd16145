"""What is not linear: Fourier magnitudes, JPEG beside Pillow, and functions of a user."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image

from scoresde.operators import JPEG, FourierMagnitude, FunctionOperator
from tests.operators.cases import SHAPES, randn

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


# --- magnitudes -----------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("oversampling", [1.0, 1.5, 2.0])
def test_magnitudes_are_those_of_the_padded_transform(shape, oversampling):
    x = randn(2, *shape)
    operator = FourierMagnitude(shape, oversampling)
    padded = [round(oversampling * n) for n in shape[1:]]
    expected = np.abs(np.fft.fftn(x.numpy(), s=padded, axes=tuple(range(2, x.ndim)), norm="ortho"))
    assert operator.measured_shape == (shape[0], *padded)
    torch.testing.assert_close(operator(x), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@each_shape
def test_sign_reflection_and_shift_leave_magnitudes_as_they_are(shape):
    x = randn(2, *shape)
    x[..., -1] = 0  # so that a shift by one loses nothing
    dims = tuple(range(2, x.ndim))
    operator = FourierMagnitude(shape)
    for other in (-x, x.flip(dims), x.roll(1, -1)):
        torch.testing.assert_close(operator(other), operator(x), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(operator(x.flip(1)), operator(x), atol=0.1)  # channels are not exchanged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitudes_have_a_gradient_where_they_vanish(dtype, device):
    operator = FourierMagnitude((1, 4, 4))
    nothing = torch.zeros(2, 1, 4, 4, dtype=dtype, device=device)
    assert (operator.vjp(nothing, torch.ones_like(operator(nothing))) == 0).all()
    assert operator.jvp(nothing, torch.ones_like(nothing)).isfinite().all()


# --- JPEG -----------------------------------------------------------------------------------------------------------


def compressed(image, quality):
    """A grey image of Pillow, compressed: the table of steps, and the image that comes back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    back = Image.open(io.BytesIO(file.getvalue()))
    return back.quantization[0], np.asarray(back, dtype=np.float64)


def test_steps_of_every_quality_are_those_of_libjpeg():
    image = Image.fromarray(np.zeros((8, 8), dtype=np.uint8))
    for quality in range(1, 101):
        assert JPEG((1, 8, 8), quality).steps.flatten().tolist() == compressed(image, quality)[0], quality


@pytest.mark.parametrize("quality", [5, 30, 75])
def test_jpeg_is_that_of_pillow(quality):
    """Up to its rounding of pixels, in all blocks without a coefficient so near to a tie that its cosines decide it."""
    rough = np.random.default_rng(0).normal(size=(32, 40))
    pixels = np.clip(128 + 3 * np.cumsum(np.cumsum(rough, 0), 1), 30, 225).astype(np.uint8)
    _, expected = compressed(Image.fromarray(pixels), quality)
    operator = JPEG((1, 32, 40), quality, low=0.0, high=255.0)
    found = operator(torch.from_numpy(pixels)[None, None].double())[0, 0].clamp(0, 255).numpy()
    compared = 0
    for block in itertools.product(*(range(0, size, 8) for size in pixels.shape)):
        own = tuple(slice(start, start + 8) for start in block)
        steps = operator.steps.numpy()
        coefficients = scipy.fft.dctn(pixels[own] - 128.0, norm="ortho") / steps
        if (np.abs(coefficients % 1 - 0.5) > np.maximum(0.05 / steps, 0.01)).all():
            assert np.abs(found[own] - expected[own]).max() < 0.6, block
            compared += 1
    assert compared >= 5


@pytest.mark.parametrize("size", [(13, 9), (1, 7), (8, 15)])
def test_sides_that_are_no_multiples_of_eight_are_extended_by_their_edges(size):
    x = randn(2, 3, *size).clamp(-1, 1)
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)), mode="edge")
    expected = JPEG((3, *wide.shape[2:]), 20)(torch.from_numpy(wide))[:, :, : size[0], : size[1]]
    torch.testing.assert_close(JPEG((3, *size), 20)(x), expected, rtol=0, atol=1e-12)


def test_jpeg_of_the_best_quality_is_nearly_the_image():
    """Steps of 1 round each of 64 orthonormal coefficients by 1/2 at most: a pixel by 4, in the mean by sqrt(1/12)."""
    shape = (3, 16, 16)
    x = 0.5 * randn(2, *shape).clamp(-2, 2)
    error = 127.5 * (JPEG(shape, 100)(x) - x)
    assert error.abs().max() <= 4
    assert error.square().mean().sqrt().item() == pytest.approx(12**-0.5, rel=0.1)


@pytest.mark.parametrize("quality", [1, 10, 50, 100])
def test_flat_images_are_rounded_to_a_step_of_their_mean(quality):
    """In blocks of 8 x 8 the first coefficient is 8 times the mean, so grey levels are rounded to steps / 8."""
    operator = JPEG((1, 11, 5), quality, low=0.0, high=255.0)
    step = operator.steps[0, 0].item() / 8
    for grey in (0.0, 36.7, 128.0, 250.0):
        flat = torch.full((1, 1, 11, 5), grey, dtype=torch.float64)
        expected = torch.full_like(flat, 128 + step * round((grey - 128) / step))
        torch.testing.assert_close(operator(flat), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(operator(operator(flat)), expected, rtol=0, atol=1e-10)


def test_the_range_of_jpeg_is_that_of_the_values():
    x = randn(2, 3, 8, 8).clamp(-1, 1)
    bytes_of_x = 127.5 * (x + 1)
    found = JPEG((3, 8, 8), 20, low=0.0, high=255.0)(bytes_of_x)
    torch.testing.assert_close(127.5 * (JPEG((3, 8, 8), 20)(x) + 1), found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (12, 9)])
def test_jpeg_has_the_derivative_of_no_rounding(size):
    operator, x = JPEG((2, *size), 5), randn(3, 2, *size)
    v = randn(3, 2, *size, seed=1)
    torch.testing.assert_close(operator.vjp(x, v), v, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.jvp(x, v), v, rtol=0, atol=1e-12)
    assert not torch.allclose(operator(x), x, atol=0.1)


@pytest.mark.parametrize("make", [JPEG, FourierMagnitude])
def test_samples_are_not_mixed_and_types_are_kept(make, device):
    for dtype in (torch.float32, torch.float64):
        operator = make((2, 12, 9)).to(device, dtype)
        x = randn(3, 2, 12, 9).to(device, dtype)
        together = operator(x)
        assert together.dtype == dtype
        assert together.shape == (3, *operator.measured_shape)
        apart = torch.cat([operator(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


# --- functions of a user --------------------------------------------------------------------------------------------


def curved(x):
    return torch.stack([x[:, 0].exp() * x[:, 1], x.square().sum(1), x.prod(1).sin()], 1)


def test_derivatives_of_a_function_are_its_jacobian(device):
    operator, x = FunctionOperator(curved, (4,)), randn(3, 4).to(device)
    v, direction = randn(3, 3, seed=1).to(device), randn(3, 4, seed=2).to(device)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda part: curved(part[None])[0], one) for one in x])
    assert operator.measured_shape == (3,)
    torch.testing.assert_close(operator(x), curved(x))
    torch.testing.assert_close(operator.jvp(x, direction), torch.einsum("bmd,bd->bm", jacobian, direction))
    torch.testing.assert_close(operator.vjp(x, v), torch.einsum("bmd,bm->bd", jacobian, v))


def test_derivatives_are_found_whatever_the_mode_of_gradients():
    operator, x = FunctionOperator(curved, (4,)), randn(3, 4)
    v, direction = randn(3, 3, seed=1), randn(3, 4, seed=2)
    wanted = operator.vjp(x, v), operator.jvp(x, direction)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = operator.vjp(x, v), operator.jvp(x, direction)
            own = operator.vjp(x + 0, v + 0), operator.jvp(x + 0, direction + 0)  # tensors of the mode itself
        for pair in (found, own):
            assert all(torch.equal(a, b) for a, b in zip(pair, wanted, strict=True))
            assert not any(part.requires_grad for part in pair)


def test_a_derivative_can_be_differentiated():
    """Of <v, J(x)^T u> with respect to x and to u, beside finite differences by torch."""
    operator, v = FunctionOperator(curved, (4,)), randn(2, 4, seed=2)
    x, u = randn(2, 4).requires_grad_(), randn(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: (operator.vjp(*inputs) * v).sum(), (x, u))
    assert torch.autograd.gradcheck(lambda x: operator.jvp(x, v), (x,))


@pytest.mark.parametrize("function", [torch.sign, torch.round], ids=["sign", "round"])
def test_steps_have_the_derivative_0(function):
    operator, x = FunctionOperator(function, (4,)), randn(2, 4)
    for y in (x, x.clone().requires_grad_()):
        assert torch.equal(operator.vjp(y, x), torch.zeros(2, 4).double())
        assert torch.equal(operator.jvp(y, x), torch.zeros(2, 4).double())

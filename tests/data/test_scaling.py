"""The scaling of data is chosen by values, whatever their type, unit and offset."""

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import load
from scoresde.data.scaling import RESOLVED, as_tensor, fit_scaling, moments, typed_moments

GENERATOR = np.random.default_rng(0)
IMAGES = {
    "pixels": GENERATOR.integers(0, 21, (60, 3, 8, 8)),
    "mask": (GENERATOR.random((60, 1, 8, 8)) < 0.4).astype(int),
    "sparse mask": (GENERATOR.random((60, 1, 8, 8)) < 0.03).astype(int),
    "class ids": GENERATOR.integers(0, 7, (60, 1, 8, 8)),
    "dark": np.minimum(GENERATOR.exponential(2, (60, 1, 8, 8)), 25).astype(int),
}


def batches(values):
    data = as_tensor(values)
    return fit_scaling(data, "x").encode(data).double()


@pytest.mark.parametrize("values", IMAGES.values(), ids=IMAGES.keys())
def test_any_unit_and_type_gives_the_same_moderate_batches(values):
    expected = batches(values.astype(np.uint8))
    assert expected.mean().abs() < 0.5
    assert 0.2 < expected.std() < 2
    for same in (values.astype(np.int64), values.astype(np.float32), 10 * values, values / 255, -7 + 3 * values):
        torch.testing.assert_close(batches(same), expected, rtol=0, atol=2e-6)


def test_truth_values_are_whole_numbers():
    flags = GENERATOR.random((50, 1, 4, 4)) < 0.5
    assert as_tensor(flags).dtype == torch.uint8
    torch.testing.assert_close(batches(flags), batches(flags.astype(np.uint8)))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("offset", [0.0, -40.0, 1e5, 1e9])
@pytest.mark.parametrize("shape", [(3,), (2, 5, 4), (2, 3, 4, 5)], ids=["vectors", "images", "volumes"])
def test_there_and_back_at_any_scale_and_offset(scale, offset, shape):
    values = scale * GENERATOR.normal(size=(400, *shape)) + offset
    data = as_tensor(values)
    scaling = fit_scaling(data, "x")
    x = scaling.encode(data)
    assert x.dtype == torch.float32
    columns = x.double().transpose(0, 1).flatten(1)
    assert columns.mean(1).abs().max() < 0.2
    assert (columns.std(1) - 1).abs().max() < 0.1
    error = (scaling.decode(x).double().numpy() - values).std()
    assert error < max(RESOLVED * scale, 1e-15 * offset)


def test_channels_of_different_units_are_scaled_apart():
    values = np.stack([GENERATOR.normal(size=(200, 6)), 3e4 + 2e4 * GENERATOR.normal(size=(200, 6))], 1)[:, :, None]
    data = as_tensor(values)
    x = fit_scaling(data, "x").encode(data)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(2), rtol=1e-3, atol=0)
    assert x.mean((0, 2, 3)).abs().max() < 1e-3


def test_columns_without_spread_are_named():
    values = GENERATOR.normal(size=(50, 4))
    values[:, 1] = 0.1
    values[:, 3] = -7
    with pytest.warns(UserWarning, match=r"x: columns 1, 3 hold a single value each"):
        scaling = fit_scaling(as_tensor(values), "x")
    assert scaling.scale[1] == scaling.scale[3] == 1
    with pytest.raises(UsageError, match="all values are equal"):
        fit_scaling(torch.full((5, 2), 0.1), "x")


def test_moments_are_exact_with_a_large_mean_and_an_outlier():
    values = 1e9 + torch.randn(3000, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0] = 0
    found = moments(values)
    columns = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, columns.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.std, columns.std(1), rtol=1e-3, atol=0)
    assert (found.low.tolist(), found.high.tolist()) == (columns.amin(1).tolist(), columns.amax(1).tolist())


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[0, 255]]), torch.uint8),
        (np.array([[-1, 255]]), torch.int16),
        (np.array([[0, 65535]], np.uint16), torch.int32),
        (np.array([[0, 2**40]]), torch.int64),
        (np.array([[0.5, 2.0], [1.0, 3.0]]), torch.float32),
        (np.array([[1.7e9, 2.0], [1.7e9 + 3, 3.0]]), torch.float64),
    ],
)
def test_a_type_is_as_small_as_the_values_allow(values, dtype):
    tensor = as_tensor(values)
    assert tensor.dtype == dtype
    np.testing.assert_array_equal(tensor.numpy(), values)
    with pytest.raises(UsageError, match="whole numbers up to"):
        as_tensor(np.array([[2**64 - 1]], np.uint64))


def test_times_in_seconds_survive(tmp_path):
    times = 1.7e9 + np.arange(4000.0)[:, None] * [0.25, 1.0]
    np.save(tmp_path / "x.npy", times)
    data = load(path=str(tmp_path / "x.npy"))
    assert len(data.all()[0].unique()) >= 4000
    np.testing.assert_allclose(data.codec.decode(data.all()[0]).numpy(), times, rtol=0, atol=1e-3)


def test_bytes_that_are_counted_have_the_moments_of_floats():
    values = torch.randint(3, 250, (500, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 7
    counted, floats = moments(values), moments(values.double())
    for name in ("mean", "std", "low", "high"):
        one, other = getattr(counted, name), getattr(floats, name)
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


@pytest.mark.parametrize("values", [GENERATOR.normal(size=(9000, 600)), GENERATOR.integers(0, 9999, (9000, 600))])
def test_moments_that_are_found_with_the_type_are_those_of_the_tensor(values):
    """To the last bit, of two blocks, of which the second is shorter."""
    for array in (values, np.asfortranarray(values), values.astype(values.dtype.newbyteorder(">")), values * 1e-300):
        tensor, found = typed_moments(array)
        plain = moments(tensor)
        assert all(torch.equal(getattr(found, n), getattr(plain, n)) for n in ("mean", "std", "low", "high"))

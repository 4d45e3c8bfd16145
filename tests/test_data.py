"""Data: known facts of the sources, exact scaling, disjoint splits, and files that are refused for a reason."""

import math
import pickle

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import ArrayData, Scaling, load, nine_modes


def test_digits_are_those_of_uci():
    data = load("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert (int(data.values.min()), int(data.values.max())) == (0, 16)
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    x, labels = data.all()
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert torch.equal(labels, data.labels)
    assert torch.equal(data.scaling.to_raw(x), data.values.float())


def test_moons_are_two_balanced_half_circles():
    data = load("moons")
    assert (data.shape, data.num_classes) == ((2,), 2)
    assert torch.bincount(data.labels).tolist() == [len(data) // 2] * 2
    # centres (0, 0) and (1, 0.5), radius 1, and noise of 0.05: the mean squared radius is 1 + 2 * 0.05^2
    for label, center in enumerate([(0.0, 0.0), (1.0, 0.5)]):
        square = (data.values[data.labels == label] - torch.tensor(center)).square().sum(1)
        assert (square.mean() - 1.005).abs() < 5 * square.std() / len(square) ** 0.5
    assert torch.equal(load("moons").values, data.values)


def test_modes_are_draws_of_the_known_mixture():
    data, target = load("modes"), nine_modes()
    assert data.labels is None
    assert data.num_classes == 0
    assert torch.equal(load("modes").values, data.values)
    nearest = torch.cdist(data.values, target.means).argmin(1)
    share = torch.bincount(nearest, minlength=9) / len(data)
    expected = torch.arange(1.0, 10) / 45
    # a mode is 15 standard deviations from the next; the counts are binomial, 5 standard errors
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(data)).sqrt()).all()
    offset = (data.values - target.means[nearest]) / 0.05
    assert (offset.std(0) - 1).abs().max() < 5 / math.sqrt(2 * len(data))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"data.name 'digit'.*did you mean 'digits'"):
        load("digit")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_scaling_there_and_back(dtype, device):
    scaling = Scaling(center=127.5, scale=50.0)
    raw = torch.arange(256, device=device).to(dtype)
    x = scaling.to_model(raw)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[[0, 255]], torch.tensor([-2.55, 2.55], device=device))
    torch.testing.assert_close(scaling.to_raw(x), raw.float(), rtol=0, atol=1e-4)  # 255 roundings of float32


def test_batches_and_deviation_are_in_the_models_units(device):
    values = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    data = ArrayData(values, torch.arange(50) % 4, Scaling(5.0, 2.0)).to(device)
    index = torch.tensor([7, 3, 7], device=device)
    x, labels = data.batch(index)
    torch.testing.assert_close(x, ((values[[7, 3, 7]] - 5) / 2).to(device))
    assert labels.tolist() == [3, 3, 3]
    assert data.num_classes == 4
    assert data.std() == pytest.approx((values / 2).std().item(), rel=1e-5)
    assert data.values.device.type == data.labels.device.type == device.type


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5, 0.999])
def test_split_is_disjoint_complete_and_repeatable(held_out):
    values = torch.arange(101.0)[:, None]
    data = ArrayData(values, torch.arange(101), Scaling(1.0, 2.0))
    train, held = data.split(held_out)
    parts = [train] if held is None else [train, held]
    assert torch.equal(torch.cat([p.values for p in parts]).sort(0).values, values)  # each once, none lost
    assert all(torch.equal(part.values[:, 0].long(), part.labels) for part in parts)  # labels stay with their sample
    assert all(part.scaling == data.scaling for part in parts)
    assert len(train) == max(1, 101 - round(held_out * 101))
    assert torch.equal(data.split(held_out)[0].values, train.values)
    torch.manual_seed(5)  # whatever the state of the world
    assert torch.equal(data.split(held_out)[0].values, train.values)


def test_split_shuffles_sorted_data():
    data = ArrayData(torch.arange(1000.0)[:, None])
    _, held = data.split(0.2)
    # 200 of 0 .. 999 drawn at random: mean 499.5, standard error 289/sqrt(200) sqrt(0.8) = 18; level 1e-6 at 5
    assert abs(held.values.mean().item() - 499.5) < 5 * 18.3


@pytest.mark.parametrize("held_out", [-0.1, 1.0, math.nan])
def test_split_refuses_other_shares(held_out):
    with pytest.raises(UsageError, match=f"held_out={held_out}"):
        ArrayData(torch.zeros(4, 1)).split(held_out)


def spoiled(*bad):
    values = torch.zeros(10, 2, 2)
    for index, value in enumerate(bad):
        values[index, 0] = value  # two entries: a sample counts once
    return values


MISTAKES = {
    "nan": (lambda: ArrayData(spoiled(math.nan)), "1 of 10 samples"),
    "infinities": (lambda: ArrayData(spoiled(math.inf, -math.inf, math.nan)), "3 of 10 samples"),
    "no samples": (lambda: ArrayData(torch.zeros(0, 2)), r"\(0, 2\)"),
    "no entries": (lambda: ArrayData(torch.zeros(3, 0)), r"\(3, 0\)"),
    "flat": (lambda: ArrayData(torch.zeros(5)), r"\(5,\)"),
    "negative label": (lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, -2, 1])), "least is -2"),
    "float labels": (lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0.0, 1.0, 2.0])), "float32.*3 integers"),
    "too few labels": (lambda: ArrayData(torch.zeros(3, 1), torch.tensor([0, 1])), r"\(2,\).*3 integers"),
    "one-hot labels": (lambda: ArrayData(torch.zeros(3, 1), torch.eye(3).long()), r"\(3, 3\).*3 integers"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_bad_arrays_are_refused_with_the_count(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int32", "uint16"])
def test_a_file_of_numbers_is_standardised(tmp_path, dtype):
    spread = np.array([20.0, 2.0, 200.0])  # columns of different kinds
    values = (np.random.default_rng(0).normal(size=(200, 3)) * spread + 1000).round().astype(dtype)
    np.save(tmp_path / "x.npy", values)
    data = load("", str(tmp_path / "x.npy"))
    assert data.shape == (3,)
    x, labels = data.all()
    assert labels is None
    assert x.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(x.std(0), torch.ones(3), rtol=0, atol=1e-4)
    np.testing.assert_allclose(data.scaling.to_raw(x).numpy(), values.astype(np.float32), rtol=1e-4)


def test_a_file_of_bytes_is_an_image_in_minus_one_to_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=(6, 3, 4, 4), dtype=np.uint8)
    images.flat[:2] = 0, 255
    np.savez(tmp_path / "x.npz", x=images, labels=np.array([2, 0, 1, 1, 0, 2], dtype=np.int32))
    data = load("digits", str(tmp_path / "x.npz"))  # a path goes before a name
    x, labels = data.all()
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert data.values.dtype == torch.uint8  # kept small in memory
    assert labels.tolist() == [2, 0, 1, 1, 0, 2]
    assert labels.dtype == torch.int64
    np.testing.assert_allclose(data.scaling.to_raw(x).numpy(), images, atol=1e-4)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_content_of_a_file_tells_its_format(tmp_path, suffix):
    """An array or an archive under the other's name is read for what it is."""
    array = np.arange(6.0).reshape(2, 3)
    path = tmp_path / f"x{suffix}"
    with path.open("wb") as file:
        np.savez(file, x=array) if suffix == ".npy" else np.save(file, array)
    np.testing.assert_array_equal(load("", str(path)).values.numpy(), array)


class Trap:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Trap, "ran", True)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_pickled_array_is_refused_and_runs_nothing(tmp_path, suffix):
    array = np.empty((3, 2), dtype=object)
    array[:] = Trap()
    path = tmp_path / f"x{suffix}"
    np.save(path, array, allow_pickle=True) if suffix == ".npy" else np.savez(path, x=array)
    with pytest.raises(UsageError, match=f"x{suffix}.*cannot be read as arrays of numbers"):
        load("", str(path))
    assert not Trap.ran
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.ran  # the trap itself works
    Trap.ran = False


def saved(**arrays):
    return lambda path: np.savez(path, **arrays)


def written(content):
    return lambda path: path.write_bytes(content)


def bare(array):
    return lambda path: np.save(path, array)


FILES = {
    "missing": ("x.npy", lambda path: None, "x.npy.*cannot be read"),
    "suffix": ("x.csv", written(b"1,2,3"), "x.csv.*cannot be read as data; need .npy, .npz"),
    "empty": ("x.npy", written(b""), "x.npy.*cannot be read"),
    "garbage": ("x.npy", written(b"no numpy file"), "x.npy.*cannot be read"),
    "torn archive": ("x.npz", written(b"PK\x03\x04 torn"), "x.npz.*cannot be read"),
    "no x": ("x.npz", saved(images=np.eye(3)), r"\['images'\].*'x'"),
    "text": ("x.npy", bare(np.array([["a", "b"]])), "<U1.*need numbers"),
    "complex": ("x.npy", bare(np.eye(3) * 1j), "complex128.*need numbers"),
    "flags": ("x.npy", bare(np.eye(3) > 0), "bool.*need numbers"),
    "one axis": ("x.npy", bare(np.arange(4.0)), r"\(4,\)"),
    "no axis": ("x.npy", bare(np.array(4.0)), r"shape \(\)"),
    "constant": ("x.npy", bare(np.ones((4, 2))), "all values are equal"),
    "constant bytes": ("x.npy", bare(np.ones((4, 2), dtype=np.uint8)), "all values are equal"),
    "nan": ("x.npy", bare(np.array([[1.0, np.nan], [2.0, 3.0]])), "1 of 2 samples"),
    "too large": ("x.npy", bare(np.array([[1.0, 1e300], [2.0, 3.0]])), "1 of 2 samples"),
    "float labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0.0, 1.5, 2.0])), "'labels'.*float64"),
    "negative labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0, -1, 2])), "least is -1"),
    "few labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0, 1])), r"\(2,\).*3 integers"),
}


@pytest.mark.parametrize(("name", "write", "message"), FILES.values(), ids=FILES.keys())
def test_a_file_is_refused_for_a_reason(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UsageError, match=message):
        load("", str(tmp_path / name))


PLANES = ("moons", "modes", "swiss_roll", "checkerboard", "eight_gaussians", "rings")


@pytest.mark.parametrize("name", PLANES)
def test_a_toy_is_ten_thousand_points_of_about_unit_size_and_always_the_same(name):
    torch.manual_seed(len(name))  # whatever the state of the world
    data = load(name)
    assert data.values.shape == (10_000, 2)
    assert data.values.dtype == torch.float32
    assert 0.5 < data.std() < 1.5
    assert torch.equal(load(name).values, data.values)
    assert len(data.values.unique(dim=0)) > 9_990


def test_rings_are_circles_and_eight_gaussians_lie_on_one():
    data = load("rings")
    radius = data.values.norm(dim=1)
    assert data.num_classes == 3
    for label in range(3):
        own = radius[data.labels == label]
        assert abs(own.mean().item() - 0.5 * (label + 1)) < 0.01  # noise of 0.05 across adds 0.05^2 / (2 r) at most
        assert own.std().item() == pytest.approx(0.05, rel=0.1)
    data = load("eight_gaussians")
    assert torch.bincount(data.labels).tolist() == [1250] * 8
    means = torch.stack([data.values[data.labels == label].mean(0) for label in range(8)])
    torch.testing.assert_close(means.norm(dim=1), torch.full((8,), 2**0.5), atol=0.02, rtol=0)
    assert (torch.cdist(means, means) + 10 * torch.eye(8)).min() > 1.0


def test_the_checkerboard_is_uniform_on_its_dark_squares():
    cell = (load("checkerboard").values + 2).floor().long()
    assert ((cell >= 0) & (cell < 4)).all()
    assert (cell.sum(1) % 2 == 0).all()
    count = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert (count[count > 0] - 1250).abs().max() < 5 * 35  # binomial, five deviations
    assert (count > 0).sum() == 8


def test_the_swiss_roll_is_a_spiral():
    """The radius is 1.5 pi to 4.5 pi, over 7, and grows with the angle."""
    points = load("swiss_roll").values
    radius = points.norm(dim=1)
    assert radius.min() > (1.5 * math.pi - 2) / 7
    assert radius.max() < (4.5 * math.pi + 2) / 7
    turn = torch.atan2(points[:, 1], points[:, 0])
    offset = (7 * radius - turn) / (2 * math.pi)
    assert (offset - offset.round()).std() < 0.1


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_an_array_with_three_axes_is_grey_images(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 256, size=(6, 5, 4)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    data = load("", str(tmp_path / "x.npy"))
    assert data.shape == (1, 5, 4)
    np.testing.assert_array_equal(data.values[:, 0].numpy(), values)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_channels_last_are_refused_with_the_remedy(tmp_path, dtype, channels):
    values = np.random.default_rng(0).integers(0, 256, size=(6, 8, 8, channels)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UsageError, match=r"x\.npy'.*looks like \(N, H, W, C\).*save x\.transpose\(0, 3, 1, 2\)"):
        load("", str(tmp_path / "x.npy"))
    np.save(tmp_path / "x.npy", values.transpose(0, 3, 1, 2))
    assert load("", str(tmp_path / "x.npy")).shape == (channels, 8, 8)

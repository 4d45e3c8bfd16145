"""Arrays in .npy and .npz files: what they mean, and that no damage or bomb gets further than one line."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from scoresde import UsageError
from scoresde.data import load
from tests.data.samples import noise


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
    np.testing.assert_allclose(data.codec.decode(x).numpy(), values.astype(np.float32), rtol=1e-4)


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
    np.testing.assert_allclose(data.codec.decode(x).numpy(), images, atol=1e-4)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_content_of_a_file_tells_its_format(tmp_path, suffix):
    """An array or an archive under the other's name is read for what it is."""
    array = np.arange(6.0).reshape(2, 3)
    path = tmp_path / f"x{suffix}"
    with path.open("wb") as file:
        np.savez(file, x=array) if suffix == ".npy" else np.save(file, array)
    np.testing.assert_array_equal(load("", str(path)).values.numpy(), array)


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


def test_bytes_are_images_with_channels_first(tmp_path):
    np.save(tmp_path / "x.npy", noise(5, 6, 7))
    assert load(path=str(tmp_path / "x.npy")).shape == (1, 6, 7)
    np.save(tmp_path / "x.npy", noise(5, 6, 7, 3))
    with pytest.raises(UsageError, match=r"channels last.*transpose\(0, 3, 1, 2\)"):
        load(path=str(tmp_path / "x.npy"))


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
    "suffix": ("x.csv", written(b"1,2,3"), "x.csv.*cannot be read as data; need an image, .npy, .npz"),
    "empty": ("x.npy", written(b""), "x.npy.*cannot be read"),
    "garbage": ("x.npy", written(b"no numpy file"), "x.npy.*cannot be read"),
    "torn archive": ("x.npz", written(b"PK\x03\x04 torn"), "x.npz.*cannot be read"),
    "no x": ("x.npz", saved(images=np.eye(3)), r"\['images'\].*'x'"),
    "text": ("x.npy", bare(np.array([["a", "b"]])), "<U1.*need numbers"),
    "complex": ("x.npy", bare(np.eye(3) * 1j), "complex128.*need numbers"),
    "one axis": ("x.npy", bare(np.arange(4.0)), r"\(4,\)"),
    "no axis": ("x.npy", bare(np.array(4.0)), r"shape \(\)"),
    "constant": ("x.npy", bare(np.ones((4, 2))), "all values are equal"),
    "constant bytes": ("x.npy", bare(np.ones((4, 2), dtype=np.uint8)), "all values are equal"),
    "nan": ("x.npy", bare(np.array([[1.0, np.nan], [2.0, 3.0]])), "1 of 2 samples"),
    "too large": ("x.npy", bare(np.array([[1.0, 1e300], [2.0, 3.0]])), "1 of 2 samples"),
    "float labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0.0, 1.5, 2.0])), "'labels'.*float64"),
    "negative labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0, -1, 2])), "smallest is -1"),
    "one-hot labels": ("x.npz", saved(x=np.eye(3), labels=np.eye(3, dtype=int)), r"'labels'.*\(3, 3\).*3 integers"),
    "few labels": ("x.npz", saved(x=np.eye(3), labels=np.array([0, 1])), r"\(2,\).*3 integers"),
}


@pytest.mark.parametrize(("name", "write", "message"), FILES.values(), ids=FILES.keys())
def test_a_file_is_refused_for_a_reason(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UsageError, match=message):
        load("", str(tmp_path / name))


def npy_header(shape, kind="|u1"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


ARCHIVES = {
    "declared bomb": ({"x": npy_header((10**6, 10**6))}, "takes 1e\\+03 GB"),
    "packed bomb": ({"x": npy_header((10**8, 1)) + bytes(10**8)}, "an archive bomb"),
    "lie": ({"x": npy_header((100, 100)) + bytes(10)}, "declares 10,000 bytes.*holds 10"),
    "negative": ({"x": npy_header((-2, -3)) + bytes(6)}, "cannot be read|declares"),
    "labels bomb": ({"x": npy_header((2, 1)) + b"ab", "labels": npy_header((10**12,))}, "takes 1e\\+03 GB"),
}


@pytest.mark.parametrize(("arrays", "message"), ARCHIVES.values(), ids=ARCHIVES.keys())
def test_an_archive_bomb_is_refused(tmp_path, arrays, message):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(UsageError, match=message):
        load(path=str(tmp_path / "x.npz"))


def test_other_arrays_of_an_archive_are_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=noise(4, 3, 5, 5), unused=np.zeros(10**8, np.uint8))
    assert len(load(path=str(tmp_path / "x.npz"))) == 4


def test_a_bare_array_that_declares_too_much(tmp_path):
    (tmp_path / "x.npy").write_bytes(npy_header((10**6, 10**6)))
    with pytest.raises(UsageError, match=r"takes 1e\+03 GB"):
        load(path=str(tmp_path / "x.npy"))

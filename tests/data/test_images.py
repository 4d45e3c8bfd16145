"""One image: what each kind of file means, and what each choice does."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import UsageError
from scoresde.data import ArrayData, ReadOptions, load
from scoresde.data.images import MAX_PIXELS, decode, refitted
from scoresde.data.stores import MemoryStore
from tests.data.samples import noise, save


def transparent_grey():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 255), (0, 0)])
    return image


def palette(**info):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.info.update(info)
    return image


KINDS = {  # image, options of saving, expected pixels left to right: one number for grey
    "grey": (Image.fromarray(np.array([[7, 200]], np.uint8)), "png", [7, 200]),
    "bits": (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "png", [0, 255]),
    "16 bits": (Image.fromarray(np.array([[257, 65535]], np.uint16)), "png", [1, 255]),
    "16 bits, rounded": (Image.fromarray(np.array([[128, 129]], np.uint16)), "tif", [0, 1]),
    "colour": (Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "bmp", [(1, 2, 3), (4, 5, 6)]),
    "palette": (palette(), "png", [(10, 20, 30), (200, 100, 50)]),
    "palette with a clear colour": (palette(transparency=1), "png", [(10, 20, 30), (255, 255, 255)]),
    "alpha": (
        Image.fromarray(np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)),
        "webp",
        [(10, 20, 30), (255, 255, 255)],
    ),
    "half alpha": (
        Image.fromarray(np.array([[[0, 0, 0, 51], [0, 0, 0, 255]]], np.uint8)),
        "png",
        [(204,) * 3, (0,) * 3],
    ),
    "grey with alpha": (transparent_grey(), "png", [0, 255]),
}


@pytest.mark.parametrize(("image", "suffix", "expected"), KINDS.values(), ids=KINDS.keys())
def test_what_a_kind_of_file_means(tmp_path, image, suffix, expected):
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    expected = np.array(expected).reshape(2, -1).T[:, None]
    np.testing.assert_array_equal(decode("x", path, ReadOptions()), expected)
    np.testing.assert_array_equal(decode("x", path.read_bytes(), ReadOptions()), expected)
    colour = decode("x", path, ReadOptions(channels=3))
    np.testing.assert_array_equal(colour, np.broadcast_to(expected, colour.shape))
    weights = np.array([0.299, 0.587, 0.114]) if len(expected) == 3 else np.ones(1)
    grey = decode("x", path, ReadOptions(channels=1))
    np.testing.assert_allclose(grey[0], np.tensordot(weights, expected, 1), atol=0.51 if len(expected) == 3 else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_orientation_is_honoured(tmp_path, orientation):
    upright = noise(2, 3)
    undo = {1: 0, 3: 2, 6: 1, 8: 3}.get(orientation)  # quarter turns anticlockwise from what is seen to what is stored
    stored = {2: upright[:, ::-1], 4: upright[::-1], 5: upright.T, 7: upright[::-1, ::-1].T}.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "x.png", np.ascontiguousarray(np.rot90(upright, undo) if stored is None else stored), exif=exif)
    np.testing.assert_array_equal(decode("x", tmp_path / "x.png", ReadOptions())[0], upright)


def bars():
    """12 wide, 6 high: black, then 6 columns of level 100, then white."""
    return Image.fromarray(np.repeat([0] * 3 + [100] * 6 + [255] * 3, 6).reshape(12, 6).T.astype(np.uint8))


RESIZE_MODES = {  # four pixels a side; bicubic weights overshoot by less than a tenth of an edge
    "crop": lambda x: abs(x - 100).max() <= 16,
    "pad": lambda x: (x[[0, 3]] == 0).all() and x[1, 0] < 15 and abs(x[1:3, 1:3] - 100).max() <= 16 and x[1, 3] > 240,
    "squash": lambda x: (x[:, 0] < 15).all() and abs(x[:, 1:3] - 100).max() <= 16 and (x[:, 3] > 240).all(),
    "center": lambda x: (x == 100).all(),
}


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_each_mode_of_resizing_does_what_it_says(tmp_path, mode):
    bars().save(tmp_path / "x.png")
    x = decode("x", tmp_path / "x.png", ReadOptions(image_size=(4,), resize_mode=mode)).astype(int)
    assert x.shape == (1, 4, 4)
    assert RESIZE_MODES[mode](x[0]), x


def test_center_surrounds_a_smaller_image_with_black(tmp_path):
    save(tmp_path / "x.png", np.full((2, 2), 9, np.uint8))
    x = decode("x", tmp_path / "x.png", ReadOptions(image_size=(4, 6), resize_mode="center"))
    assert x[0].nonzero() == (pytest.approx([1, 1, 2, 2]), pytest.approx([2, 3, 2, 3]))


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_height_and_width_may_differ(photos, mode):
    assert load(path=str(photos), options=ReadOptions(image_size=(5, 9), resize_mode=mode)).shape == (3, 5, 9)


def test_a_large_jpeg_is_the_same_picture_when_unpacked_smaller(tmp_path):
    y, x = np.mgrid[:512, :768]
    smooth = (127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8)
    save(tmp_path / "x.jpg", smooth, quality=95)
    save(tmp_path / "x.png", smooth)
    small = [decode("x", tmp_path / f"x.{s}", ReadOptions(image_size=(16,))).astype(int) for s in ("jpg", "png")]
    assert abs(small[0] - small[1]).max() <= 4


def test_images_in_memory_are_fitted_too():
    values = torch.from_numpy(noise(5, 1, 28, 28))
    options = ReadOptions(image_size=(32,), resize_mode="center", channels=3)
    data = refitted(ArrayData(values), options, "x", lambda: MemoryStore(options))
    assert data.shape == (3, 32, 32)
    assert torch.equal(data.values[:, 1:2, 2:30, 2:30], values)
    digits = load("digits", options=ReadOptions(image_size=(16,)))
    assert (digits.shape, int(digits.values.max()), digits.codec.scale) == ((1, 16, 16), 16, 8.0)
    with pytest.raises(UsageError, match=r"'moons'.*float32.*\(2,\)"):
        load("moons", options=ReadOptions(channels=3))


def bomb(side):
    """A PNG of a few hundred bytes that declares side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [8193, 9800, 20_000, 2**31 - 1])  # Pillow: silent, warns, raises, raises
def test_an_image_bomb_is_refused_by_name_whatever_the_limit(photos, side):
    (photos / "cat/bomb.png").write_bytes(bomb(side))
    with pytest.raises(UsageError, match=rf"cat/bomb.png'.*more than {MAX_PIXELS:,} pixels"):
        load(path=str(photos), options=ReadOptions(max_unreadable=1.0))

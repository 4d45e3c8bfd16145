"""Images of one's own: what each kind of file means, what each choice does, and which mistakes are answered how."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import UsageError
from scoresde.data import ArrayData, ReadOptions, load
from scoresde.data import decoding as decoding_module
from scoresde.data.images import MAX_PIXELS, decode, refitted


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Six colour images of three classes, 6 high and 4 wide."""
    for i, name in enumerate(["dog/1", "cat/2", "ant/x/3", "cat/1", "dog/0", "ant/4"]):
        save(tmp_path / f"{name}.png", noise(6, 4, 3, seed=i))
    return tmp_path


def test_a_folder_gives_sorted_images_and_classes(photos):
    data = load(path=str(photos))
    order = [5, 2, 3, 1, 4, 0]  # ant/4, ant/x/3, cat/1, cat/2, dog/0, dog/1
    np.testing.assert_array_equal(
        data.values.numpy(), np.stack([noise(6, 4, 3, seed=i).transpose(2, 0, 1) for i in order])
    )
    assert data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (data.num_classes, data.values.dtype) == (3, torch.uint8)
    assert (data.scaling.center, data.scaling.scale) == (127.5, 127.5)


def test_names_of_classes_stay_with_the_parts(photos):
    train, held_out = load(path=str(photos)).split(0.5)
    assert train.class_names == held_out.class_names == train.to("cpu").class_names == ("ant", "cat", "dog")
    assert train.num_classes == 3  # also where a part lacks the last


def test_labels_can_be_left_out(photos):
    data = load(path=str(photos), choices=ReadOptions(class_conditional=False))
    assert data.labels is None
    assert data.class_names == ()


@pytest.mark.parametrize("extra", ["top.png", None])
def test_folders_are_classes_only_where_all_images_lie_in_one_of_several(tmp_path, extra):
    for i, name in enumerate(["a/1.png", "a/2.png", extra]):
        if name:
            save(tmp_path / name, noise(4, 4, seed=i))
    assert load(path=str(tmp_path)).labels is None


def test_folders_of_splits_are_not_classes(tmp_path):
    for i, name in enumerate(["train/a/1", "train/b/2", "test/a/3", "test/b/4", "test/b/5"]):
        save(tmp_path / f"{name}.png", noise(4, 4, seed=i))
    assert load(path=str(tmp_path)).labels.tolist() == [0, 1]
    assert load(path=str(tmp_path), choices=ReadOptions(split="test")).labels.tolist() == [0, 1, 1]
    with pytest.raises(UsageError, match=r"unknown data.split.*'tset': did you mean 'test'"):
        load(path=str(tmp_path), choices=ReadOptions(split="tset"))


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


@pytest.mark.parametrize("fit", RESIZE_MODES)
def test_each_fit_does_what_it_says(tmp_path, fit):
    bars().save(tmp_path / "x.png")
    x = decode("x", tmp_path / "x.png", ReadOptions(image_size=(4,), fit=fit)).astype(int)
    assert x.shape == (1, 4, 4)
    assert RESIZE_MODES[fit](x[0]), x


def test_center_surrounds_a_smaller_image_with_black(tmp_path):
    save(tmp_path / "x.png", np.full((2, 2), 9, np.uint8))
    x = decode("x", tmp_path / "x.png", ReadOptions(image_size=(4, 6), fit="center"))
    assert x[0].nonzero() == (pytest.approx([1, 1, 2, 2]), pytest.approx([2, 3, 2, 3]))


@pytest.mark.parametrize("fit", RESIZE_MODES)
def test_height_and_width_may_differ(photos, fit):
    assert load(path=str(photos), choices=ReadOptions(image_size=(5, 9), fit=fit)).shape == (3, 5, 9)


def test_a_large_jpeg_is_the_same_picture_when_unpacked_smaller(tmp_path):
    y, x = np.mgrid[:512, :768]
    smooth = (127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8)
    save(tmp_path / "x.jpg", smooth, quality=95)
    save(tmp_path / "x.png", smooth)
    small = [decode("x", tmp_path / f"x.{s}", ReadOptions(image_size=(16,))).astype(int) for s in ("jpg", "png")]
    assert abs(small[0] - small[1]).max() <= 4


def test_images_in_memory_are_fitted_too():
    values = torch.from_numpy(noise(5, 1, 28, 28))
    data = refitted(ArrayData(values), ReadOptions(image_size=(32,), fit="center", channels=3), "x")
    assert data.shape == (3, 32, 32)
    assert torch.equal(data.values[:, 1:2, 2:30, 2:30], values)
    digits = load("digits", choices=ReadOptions(image_size=(16,)))
    assert (digits.shape, int(digits.values.max()), digits.scaling.scale) == ((1, 16, 16), 16, 8.0)
    with pytest.raises(UsageError, match=r"'moons'.*float32.*\(2,\)"):
        load("moons", choices=ReadOptions(channels=3))


def test_images_that_differ_are_refused_with_the_remedy(photos):
    save(photos / "dog/9.png", noise(5, 7))
    with pytest.raises(
        UsageError, match=r"ant/4.png' has 3 channels of 6x4.*dog/9.png' has 1 channel of 5x7.*image_size=4.*channels=3"
    ):
        load(path=str(photos))
    assert load(path=str(photos), choices=ReadOptions(image_size=(4,), channels=3)).shape == (3, 4, 4)


def test_unreadable_images_are_left_out_counted_and_named(photos):
    (photos / "cat/15.png").write_bytes((photos / "cat/1.png").read_bytes()[:50])
    (photos / "cat/0.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 2 of 8 images.*cat/0.jpg' \(not an image.*cat/15.png' \("):
        data = load(path=str(photos), choices=ReadOptions(max_unreadable=0.25))
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UsageError, match=r"2 of 8 images.*cat/0.jpg.*raise data.max_unreadable=0.24"):
        load(path=str(photos), choices=ReadOptions(max_unreadable=0.24))
    with pytest.raises(UsageError, match="1 of 8 images"):
        load(path=str(photos))


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(UsageError, match=r"no image that can be read.*x.png"):
        load(path=str(tmp_path), choices=ReadOptions(max_unreadable=1.0))


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
        load(path=str(photos), choices=ReadOptions(max_unreadable=1.0))


def test_more_than_fits_is_refused_before_it_is_allocated(photos):
    with pytest.raises(UsageError, match=r"takes 4.32e-07 GB.*max_gigabytes=1e-07"):
        load(path=str(photos), choices=ReadOptions(max_gigabytes=1e-7))


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
def test_odd_things_in_a_folder(photos, tmp_path_factory):
    expected = load(path=str(photos)).values
    (photos / ".hidden").mkdir()
    save(photos / ".hidden/x.png", noise(6, 4, 3))
    save(photos / "cat/.x.png", noise(6, 4, 3))
    (photos / "cat/notes.txt").write_text("not an image")
    os.mkfifo(photos / "cat/pipe.png")
    assert torch.equal(load(path=str(photos)).values, expected)
    (photos / "cat/loop").symlink_to(photos)
    with pytest.warns(UserWarning, match=r"1 links to folders are not followed.*loop"):
        assert torch.equal(load(path=str(photos)).values, expected)
    (photos / "cat/loop").unlink()
    outside = tmp_path_factory.mktemp("outside") / "y.png"
    save(outside, noise(6, 4, 3, seed=9))
    (photos / "dog/9.png").symlink_to(outside)
    assert len(load(path=str(photos))) == 7
    outside.unlink()
    with pytest.raises(UsageError, match=r"dog/9.png' \(.*No such file"):
        load(path=str(photos))


def test_names_that_are_not_text(tmp_path):
    try:
        save(tmp_path / os.fsdecode(b"\xff\xfe") / "1.png", noise(4, 4))
    except OSError:
        pytest.skip("this disk has only names that are text")
    save(tmp_path / "b/2.png", noise(4, 4, seed=1))
    (tmp_path / "b" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(UsageError, match="udcff") as raised:
        load(path=str(tmp_path))
    str(raised.value).encode()  # can be printed


def test_threads_do_not_change_the_order(tmp_path, monkeypatch):
    for i in range(100):
        save(tmp_path / f"{i:03}.png", noise(40, 40, seed=i) if i % 3 else np.full((40, 40), i, np.uint8))
    monkeypatch.setattr(decoding_module, "BATCH", 3)
    threaded = load(path=str(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert torch.equal(load(path=str(tmp_path)).values, threaded.values)
    assert (threaded.values[99] == 99).all()


@pytest.mark.parametrize("content", [{}, {"x.txt": b""}, {"a.png": b"", "b.parquet": b""}])
def test_a_folder_of_nothing_or_of_both(tmp_path, content):
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    with pytest.raises(UsageError, match=r"holds \d images and \d parquet files"):
        load(path=str(tmp_path))


BAD = {
    "image_size": [(-1,), (1, 2, 3), (0, 5), (1.5,), ("x",), (10**9,), (True,)],
    "fit": ["cropp", ""],
    "channels": [2, -1, 4],
    "max_unreadable": [-0.1, 1.1, float("nan")],
    "max_gigabytes": [0.0, -1.0, float("nan")],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD.items() for v in values])
def test_choices_without_meaning_are_refused(field, value):
    with pytest.raises(UsageError, match=f"data.{field}"):
        ReadOptions(**{field: value})


def test_nothing_is_left_of_the_filters_of_warnings(photos):
    before = list(warnings.filters)
    load(path=str(photos))
    assert warnings.filters == before

"""From one image file to one array of bytes, (channels, height, width).

A file is decoded in this order:

1. The size that the header declares is checked against `MAX_PIXELS` before anything is unpacked: a file of some
   kilobytes can unpack to gigabytes.
2. The orientation in EXIF is applied.
3. 16-bit grey levels v become round(v / 257), which maps 0..65535 onto 0..255. Floating-point levels have no known
   range and are refused.
4. Transparent images are laid on white.
5. Grey is one channel, everything else (palettes too) is three, unless `channels` is given. Colour becomes grey by the
   luma of ITU-R 601, 0.299 R + 0.587 G + 0.114 B.
6. The image is resized (see `options`). If `image_size` is given, a large JPEG is unpacked at 1/2, 1/4 or 1/8 of its
   size, but not below twice the target. This is several times faster.

Animated and multi-page files give their first picture. Only the formats below are tried: Pillow knows others that start
programs (PostScript) or that nobody trains on.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from scoresde.data.arrays import ArrayData
from scoresde.data.file_array import FileArray
from scoresde.data.options import ReadOptions
from scoresde.data.stores import NewStore
from scoresde.errors import UsageError, require

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 2**26  # 8192 x 8192: above cameras, and 200 MB unpacked
GREY = frozenset({"1", "L", "LA", "La"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


@contextmanager
def strict_pillow() -> Iterator[None]:
    """While entered, warnings are silenced, except that Pillow's warning of a decompression bomb is an error.

    Warning filters belong to the process, so this is entered once, around all threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(name: str, content: bytes | Path, options: ReadOptions) -> np.ndarray:
    """The image in a file, or in the bytes of one, as uint8 (channels, height, width).

    Raises:
        UsageError: for a decompression bomb.
        Exception: of any kind, from Pillow, for a damaged file.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            _refuse_bomb(image.width * image.height, name)
            if options.resizes:
                enough = 2 * max(options.height_width)
                image.draft(None, (enough, enough))  # JPEG only; other formats ignore it
            ImageOps.exif_transpose(image, in_place=True)
            return pixels(fitted(_levels(image, options.channels), options))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        _refuse_bomb(MAX_PIXELS + 1, name)
        raise


def _refuse_bomb(num_pixels: int, name: str) -> None:
    require(
        num_pixels <= MAX_PIXELS,
        f"{name}: the image declares more than {MAX_PIXELS:,} pixels; remove it, or scale it down if it is sound",
    )


def _levels(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in DEEP:
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point levels have no known range; store 8 or 16 bits")
    mode = {0: "L" if image.mode in GREY else "RGB", 1: "L", 3: "RGB"}[channels]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("levels outside 0..65535; store 8 or 16 bits")
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def fitted(image: Image.Image, options: ReadOptions) -> Image.Image:
    """The image, resized as the options say."""
    if not options.resizes or image.size == options.height_width[::-1]:
        return image
    height, width = options.height_width
    if options.resize_mode == "center":
        left = (image.width - width) // 2
        top = (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))  # black outside the image
    if options.resize_mode == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if options.resize_mode == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=0)
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    """An image in mode L or RGB as (channels, height, width)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def refits(shape: tuple[int, ...], options: ReadOptions) -> bool:
    """Whether the options ask for another size or number of channels than that of samples of a shape."""
    return options.resizes or options.channels not in (0, *shape[:1])


def refitted(data: ArrayData, options: ReadOptions, source: str, new_store: NewStore) -> ArrayData:
    """Images with the size and channels of the options; other data only if the options change neither.

    Values stay in their range; bicubic interpolation alone would overshoot at edges.
    """
    if not refits(data.shape, options):
        return data
    if data.values.dtype != torch.uint8 or len(data.shape) != 3 or data.shape[0] not in (1, 3):
        raise UsageError(
            f"{source}: holds {data.values.dtype} of shape {data.shape}, and data.image_size and data.channels are for "
            "images of bytes, (1 or 3, height, width); leave them at 0"
        )
    shape = (options.channels or data.shape[0], *(options.height_width if options.resizes else data.shape[1:]))
    low, high = data.ends()
    store = new_store()
    store.begin((len(data), *shape), np.dtype(np.uint8), source)
    for sample in itertools.chain.from_iterable(block.numpy() for block in data.blocks()):
        image = Image.fromarray(sample[0] if len(sample) == 1 else np.ascontiguousarray(sample.transpose(1, 2, 0)))
        store.append(pixels(fitted(_levels(image, options.channels), options))[None].clip(low, high))
    values = store.finish()
    if isinstance(values, FileArray):
        return replace(data, values=values.typed(torch.uint8))
    return replace(data, values=torch.from_numpy(values))

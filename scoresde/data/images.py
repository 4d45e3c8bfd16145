"""From one image file to one array of bytes, (channels, height, width).

What a file means is not only its pixels. In this order:

1. the size that the header declares is held against `MAX_PIXELS` before anything is unpacked: a file of some kilobytes
   can declare, and unpack to, gigabytes;
2. the orientation that a camera notes in EXIF is applied, so that up is up;
3. 16-bit grey levels v become round(v / 257), which maps 0..65535 onto 0..255; floating-point levels have no known
   range and are refused;
4. what is transparent is laid on white;
5. grey is one channel, everything else (palettes too) is three, unless a choice says which; colour becomes grey by the
   luma of ITU-R 601, 0.299 R + 0.587 G + 0.114 B;
6. the size is fitted (see `choices`). A large JPEG that is to be small is unpacked at 1/2, 1/4 or 1/8 of its size,
   never below twice the target: the same picture, some times faster.

Of animated and multi-page files the first picture is taken. Only the formats below are tried: Pillow knows others that
start programs (PostScript) or that no one trains on.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from scoresde.data.arrays import ArrayData
from scoresde.data.options import ReadOptions
from scoresde.errors import UsageError, require

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MAX_PIXELS = 2**26  # 8192 x 8192: above cameras, and 200 MB unpacked
GREY = frozenset({"1", "L", "LA", "La"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Where images are decoded: Pillow's remarks on odd files are dropped, and its warning of a bomb is an error.

    Filters belong to the process: this is entered once, around all threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(name: str, content: bytes | Path, choices: ReadOptions) -> np.ndarray:
    """The image in a file, or in the bytes of one, as uint8 (channels, height, width).

    Raises:
        UsageError: for an image bomb.
        Exception: of any kind that Pillow raises, for a damaged file.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
            _refuse_bomb(image.width * image.height, name)
            if choices.resizes:
                enough = 2 * max(choices.height_width)
                image.draft(None, (enough, enough))  # of JPEG only; other formats ignore it
            ImageOps.exif_transpose(image, in_place=True)
            return pixels(fitted(_levels(image, choices.channels), choices))
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


def fitted(image: Image.Image, choices: ReadOptions) -> Image.Image:
    """The image in the size that is chosen."""
    if not choices.resizes or image.size == choices.height_width[::-1]:
        return image
    height, width = choices.height_width
    if choices.fit == "center":
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))  # what lies outside is black
    if choices.fit == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if choices.fit == "pad":
        return ImageOps.pad(image, (width, height), Image.Resampling.BICUBIC, color=0)
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    """An image in mode L or RGB as (channels, height, width)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def refitted(data: ArrayData, choices: ReadOptions, source: str) -> ArrayData:
    """Images in memory in the size and channels that are chosen; other data only where nothing is chosen.

    Values stay in their range, which bicubic weights alone would leave at edges.
    """
    if not choices.resizes and choices.channels in (0, data.shape[0]):
        return data
    if data.values.dtype != torch.uint8 or len(data.shape) != 3 or data.shape[0] not in (1, 3):
        raise UsageError(
            f"{source}: holds {data.values.dtype} of shape {data.shape}, and data.image_size and data.channels are for "
            "images of bytes, (1 or 3, height, width); leave them at 0"
        )
    shape = (choices.channels or data.shape[0], *(choices.height_width if choices.resizes else data.shape[1:]))
    choices.require_room(len(data) * shape[0] * shape[1] * shape[2], source)
    values = np.empty((len(data), *shape), np.uint8)
    for sample, out in zip(data.values.numpy(), values, strict=True):
        image = Image.fromarray(sample[0] if len(sample) == 1 else np.ascontiguousarray(sample.transpose(1, 2, 0)))
        out[:] = pixels(fitted(_levels(image, choices.channels), choices))
    return replace(data, values=torch.from_numpy(values.clip(data.values.min().item(), data.values.max().item())))

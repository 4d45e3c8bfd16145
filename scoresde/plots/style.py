"""Shared by all figures: colours, the check for finite numbers, and files.

Figures are made without pyplot, so no global state is changed and no display is needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from scoresde._files import MARK, write_bytes
from scoresde.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's colours, which colour-blind readers can distinguish
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
LINES = (*COLOURS[:6], "0.55", COLOURS[7])  # for lines: yellow is lost on white
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))  # a second mark, for lines on top of each other
MISSING = "0.75"  # grey, for numbers that are not finite
LARGE = 150_000  # bytes above which a picture is reduced


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, laid out so that nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def numbers(name: str, values: Tensor) -> np.ndarray:
    """Values on the host, with NaN for all that are not finite.

    Raises:
        UsageError: if none is finite, because the picture would be blank.
    """
    array = values.detach().cpu().double().numpy().copy()
    array[~np.isfinite(array)] = np.nan
    require(
        array.size > 0 and not np.isnan(array).all(),
        f"{name} of shape {tuple(values.shape)}: holds no finite number to draw; look for NaN in its computation",
    )
    return array


def literal(text: str) -> str:
    """A text, such as the name of a class, that a figure shows letter by letter: it is no formula.

    Bytes of a file's name that are no letters are escaped, because no font can draw them.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def reach(low: float, high: float, margin: float = 0.08) -> tuple[float, float]:
    """Limits of an axis around a range or a single value."""
    extent = high - low if high > low else max(1.0, abs(low))
    return low - margin * extent, high + margin * extent


def save(picture: Figure | Image, path: Path, dpi: int = 90) -> None:
    """Writes a figure as PNG or SVG, or an image as PNG. A PNG above 150 kB is written in fewer colours.

    Raises:
        UsageError: for another kind of file, or a folder that does not exist.
        OSError: if it cannot be written; names `path`.
    """
    from matplotlib.figure import Figure

    require(path.suffix in (".png", ".svg"), f"output={str(path)!r}: need the name of a .png or .svg file")
    if path.suffix == ".png":
        content = _small_png(image_of(picture, dpi))
    else:
        require(isinstance(picture, Figure), f"output={str(path)!r}: this picture is made of pixels; need .png")
        assert isinstance(picture, Figure)
        buffer = io.BytesIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Description": MARK})
        content = buffer.getvalue()
    _write(path, content)


def save_animation(
    frames: Sequence[Figure | Image], path: Path, seconds: float = 0.25, dpi: int = 72, max_bytes: int = LARGE
) -> None:
    """Writes frames of one size as a GIF that repeats for ever, reduced in size to at most `max_bytes` if possible.

    Args:
        frames: at least one frame.
        path: the file.
        seconds: duration of a frame; the last stays four times as long.
        dpi: resolution of figures.
        max_bytes: largest size of the file; 0 for no limit.

    Raises:
        UsageError: for no frames, or a folder that does not exist.
        OSError: if the file cannot be written; names `path`.
    """
    require(len(frames) > 0, "frames: there are none; an animation needs at least one")
    lasts = [round(1000 * seconds)] * (len(frames) - 1) + [round(4000 * seconds)]
    scale = 1.0
    while True:
        content = _gif([_smaller(frame, scale, dpi) for frame in frames], lasts)
        if not max_bytes or len(content) <= max_bytes or scale < 0.3:
            break
        scale *= min(0.95, 0.97 * (max_bytes / len(content)) ** 0.5)
    _write(path, content)


def _smaller(frame: Figure | Image, scale: float, dpi: int) -> Image:
    """A frame as an image, scaled: a figure is drawn at a lower resolution, an image is resized."""
    from PIL import Image

    if not isinstance(frame, Image.Image):
        return image_of(frame, round(scale * dpi))
    size = (max(1, round(scale * frame.width)), max(1, round(scale * frame.height)))
    return frame.resize(size, Image.Resampling.NEAREST)


def _gif(images: Sequence[Image], lasts: Sequence[int]) -> bytes:
    """The bytes of a GIF with one palette, so that pixels that stay the same are not written again."""
    from PIL import Image

    first, middle, last = (images[k].convert("RGB") for k in (0, len(images) // 2, -1))
    both = Image.new("RGB", (first.width, 3 * first.height))
    for k, image in enumerate((first, middle, last)):
        both.paste(image, (0, k * first.height))
    palette = both.quantize(24, dither=Image.Dither.NONE)
    frames = [image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    file = io.BytesIO()
    frames[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=list(lasts),
        loop=0,
        optimize=True,
        comment=MARK.encode(),
    )
    return file.getvalue()


def image_of(picture: Figure | Image, dpi: int = 100) -> Image:
    """The pixels of a figure, RGB; an image is returned as it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    if not isinstance(picture, Figure):
        return picture
    picture.set_dpi(dpi)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def png_bytes(image: Image, optimize: bool = False) -> bytes:
    """The bytes of a PNG that says who wrote it."""
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MARK)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=optimize, pnginfo=info)
    return file.getvalue()


def _small_png(image: Image) -> bytes:
    """The bytes of a PNG; one above 150 kB in 256 colours, or else in 96."""
    from PIL import Image

    kinds = [image] if image.mode == "L" else [image, *(image.quantize(n, dither=Image.Dither.NONE) for n in (256, 96))]
    for kind in kinds:
        content = png_bytes(kind, optimize=True)
        if len(content) <= LARGE:
            break
    return content


def _write(path: Path, content: bytes) -> None:
    require(
        path.parent.is_dir(),
        f"output={str(path)!r}: cannot be written (there is no such folder); make it, or choose another with --output",
    )
    write_bytes(path, content)

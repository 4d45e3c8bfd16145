"""Many image files into one array: decoded by threads, kept in order, the unreadable ones counted and named.

Decoding is Pillow's C code, which lets other threads run meanwhile. Images are handed to the threads in batches, small
enough that all cores have work and large enough that handing over costs nothing beside decoding; only a few batches are
under way at a time, so that memory is that of the finished array plus some images, whatever their number. Results are
taken in the order of the files, not in that in which threads finish: the array is the same on every machine.

The array is made when the first image is known: all others must have its shape, or a choice says what to do.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from scoresde.data.images import decode, strict_pillow
from scoresde.data.options import ReadOptions, reason
from scoresde.errors import UsageError, require

BATCH = 32
NUM_NAMED = 3
Item = tuple[str, bytes | Path | None]  # what to call an image, and its bytes or where they lie


def gather(items: Iterable[Item], total: int, choices: ReadOptions, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and the places, among all `total` items, of the N that could be read.

    Raises:
        UsageError: for too many that cannot be read, images of different shapes, a bomb, or more than fits.
    """
    values, first = np.empty(0), ""
    kept: list[int] = []
    unreadable: list[str] = []
    for index, (name, image) in enumerate(_decoded(items, choices)):
        require(index < total, f"{source}: holds more images than the {total} that it declares")
        if isinstance(image, str):
            unreadable.append(f"{name} ({image})")
            _check_unreadable(unreadable, total, choices, source)
            continue
        if not kept:
            choices.require_room(total * image.size, source)
            values, first = np.empty((total, *image.shape), np.uint8), name
        if image.shape != values.shape[1:]:
            raise _different_shapes(first, values.shape[1:], name, image.shape, source)
        values[len(kept)] = image
        kept.append(index)
    require(bool(kept), f"{source}: holds no image that can be read" + _named(unreadable))
    if unreadable:
        warnings.warn(
            f"{source}: left out {len(unreadable)} of {total} images, which cannot be read{_named(unreadable)}",
            stacklevel=2,
        )
    return values[: len(kept)], np.array(kept)


def _decoded(items: Iterable[Item], choices: ReadOptions) -> Iterator[tuple[str, np.ndarray | str]]:
    """Names with images, or with the reason why there is none, in order."""

    def work(batch: list[Item]) -> list[tuple[str, np.ndarray | str]]:
        return [(name, _image_or_reason(name, content, choices)) for name, content in batch]

    num_threads = min(os.cpu_count() or 1, 16)
    waiting: deque[Future[list[tuple[str, np.ndarray | str]]]] = deque()
    with strict_pillow(), ThreadPoolExecutor(num_threads) as pool:
        try:
            rest = iter(items)
            while batch := list(itertools.islice(rest, BATCH)):
                waiting.append(pool.submit(work, batch))
                if len(waiting) > 2 * num_threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _image_or_reason(name: str, content: bytes | Path | None, choices: ReadOptions) -> np.ndarray | str:
    if content is None:
        return "holds no bytes"
    try:
        return decode(name, content, choices)
    except UsageError:
        raise
    except Exception as error:  # Pillow's readers raise of all kinds over damaged files
        return "not an image of a known format" if "cannot identify" in str(error) else reason(error)


def _check_unreadable(unreadable: list[str], total: int, choices: ReadOptions, source: str) -> None:
    share = choices.max_unreadable
    require(
        len(unreadable) <= share * total,
        f"{source}: {len(unreadable)} of {total} images, or more, cannot be read{_named(unreadable)}; remove them, "
        f"or raise data.max_unreadable={share:g}, the share that may be left out",
    )


def _named(unreadable: list[str]) -> str:
    more = ", ..." if len(unreadable) > NUM_NAMED else ""
    return f": {', '.join(unreadable[:NUM_NAMED])}{more}" if unreadable else ""


def _different_shapes(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...], source: str) -> UsageError:
    remedies = []
    if shape[1:] != other[1:]:
        remedies.append(f"one size with --config.data.image_size={min(*shape[1:], *other[1:])}")
    if shape[0] != other[0]:
        remedies.append("one number of channels with --config.data.channels=3")
    told = [f"{file} has {c} channel{'s' * (c > 1)} of {h}x{w}" for file, (c, h, w) in ((first, shape), (name, other))]
    return UsageError(f"{source}: images differ: {told[0]}, {told[1]}; choose {' and '.join(remedies)}")

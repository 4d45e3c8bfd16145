"""Decodes many image files into one store, with threads; unreadable files are counted and named.

Pillow decodes in C and releases the interpreter lock. The threads take images in batches, small enough that all cores
have work and large enough that the hand-over is cheap beside decoding. Only a few batches are in flight at a time, so
memory is that of the store plus some images. Results are taken in the order of the files, not in the order in which
threads finish: the array is the same on every machine.

The store is begun when the first image is known. All others must have its shape, unless an option resizes them.
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

from scoresde.data.file_array import FileArray
from scoresde.data.images import decode, strict_pillow
from scoresde.data.options import ReadOptions, reason
from scoresde.data.stores import Store
from scoresde.errors import UsageError, require

BATCH = 32
NUM_NAMED = 3
Item = tuple[str, bytes | Path | None]  # the name of an image, and its bytes or their file


def gather(
    items: Iterable[Item], total: int, options: ReadOptions, source: str, store: Store
) -> tuple[np.ndarray | FileArray, np.ndarray]:
    """The images that can be read, `(N, C, H, W)`, and their places among all `total` items, `(N,)`.

    Raises:
        UsageError: for too many unreadable images, images of different shapes, a decompression bomb, or data that the
            store has no room for.
    """
    shape: tuple[int, ...] = ()
    first = ""
    kept: list[int] = []
    unreadable: list[str] = []
    for index, (name, image) in enumerate(_decoded(items, options)):
        require(index < total, f"{source}: holds more images than the {total} that it declares")
        if isinstance(image, str):
            unreadable.append(f"{name} ({image})")
            _check_unreadable(unreadable, total, options, source)
            continue
        if not kept:
            shape = image.shape
            store.begin((total, *shape), image.dtype, source)
            first = name
        if image.shape != shape:
            raise _different_shapes(first, shape, name, image.shape, source)
        store.append(image[None])
        kept.append(index)
    require(bool(kept), f"{source}: holds no image that can be read" + _named(unreadable))
    if unreadable:
        warnings.warn(
            f"{source}: left out {len(unreadable)} of {total} images, which cannot be read{_named(unreadable)}",
            stacklevel=2,
        )
    return store.finish(), np.array(kept)


def _decoded(items: Iterable[Item], options: ReadOptions) -> Iterator[tuple[str, np.ndarray | str]]:
    """Names with images, or with the reason why an image cannot be read, in order."""

    def work(batch: list[Item]) -> list[tuple[str, np.ndarray | str]]:
        return [(name, _image_or_reason(name, content, options)) for name, content in batch]

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


def _image_or_reason(name: str, content: bytes | Path | None, options: ReadOptions) -> np.ndarray | str:
    if content is None:
        return "holds no bytes"
    try:
        return decode(name, content, options)
    except UsageError:
        raise
    except Exception as error:  # Pillow's readers raise exceptions of all kinds for damaged files
        return "not an image of a known format" if "cannot identify" in str(error) else reason(error)


def _check_unreadable(unreadable: list[str], total: int, options: ReadOptions, source: str) -> None:
    share = options.max_unreadable
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
    both = [f"{file} has {c} channel{'s' * (c > 1)} of {h}x{w}" for file, (c, h, w) in ((first, shape), (name, other))]
    return UsageError(f"{source}: images differ: {both[0]}, {both[1]}; choose {' and '.join(remedies)}")

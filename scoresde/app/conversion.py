"""Reading a run's data, and what is said while they are converted to be read from disk."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from scoresde.app.progress import Progress
from scoresde.data.arrays import ArrayData
from scoresde.data.file_array import FileArray
from scoresde.data.stores import Watch
from sde_configs import build


def read_data(config: ConfigDict) -> tuple[ArrayData, ArrayData | None]:
    """Training and held-out data; if they are converted, progress is shown, and where the file lies is said."""
    with _shown() as (watch, converted):
        train, held_out = build.build_data(config, watch)
    if converted and isinstance(train.values, FileArray):
        path = train.values.file.path
        size = path.stat().st_size
        print(f"converted to {path} ({size / 1e9:.3g} GB); the next run takes it from there", file=sys.stderr)
    return train, held_out


@contextlib.contextmanager
def _shown() -> Iterator[tuple[Watch, list[Progress]]]:
    """A watch that shows progress, and what it has shown."""
    shown: list[Progress] = []
    counts = [0]

    with contextlib.ExitStack() as bars:

        def watch(count: int, total: int) -> None:
            if not shown or count <= counts[0]:  # the first store, or the next, as images are brought to one size
                bars.close()
                shown.append(bars.enter_context(Progress("convert", total, unit="samples")))
            counts[0] = count
            shown[-1].update(count)

        yield watch, shown

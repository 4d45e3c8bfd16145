"""Samples in shards on disk, so that a long run of sampling that is killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final
from zipfile import BadZipFile

import numpy as np
import torch

from samplers import Samples
from scoresde._files import write_bytes
from scoresde.app.files import held
from scoresde.errors import UsageError


@final
class SampleShards:
    """A folder of shards beside the output, of one command; its name has a checksum of all that the samples depend on.

    Args:
        output: the picture that is to be written in the end.
        settings: all that the samples depend on, as JSON can hold it.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
        self.folder = output.with_name(f".{output.stem}.{digest}.shards")
        self.folder.mkdir(exist_ok=True)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder against another command of the same samples."""
        return held(
            self.folder, f"{str(self.folder)!r}: another command is drawing these samples; wait until it is done"
        )

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:012d}.npz"

    def has(self, first: int) -> bool:
        """Whether the shard that begins with a sample is there; a shard is there whole or not at all."""
        return self._path(first).exists()

    def write(self, first: int, samples: Samples) -> None:
        """Adds a shard."""
        content = io.BytesIO()
        np.savez(content, x=samples.x.cpu().numpy(), nfe=samples.nfe)
        write_bytes(self._path(first), content.getvalue())

    def read(self, first: int) -> Samples:
        """The shard that begins with a sample.

        Raises:
            UsageError: for one that is damaged.
        """
        path = self._path(first)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return Samples(torch.from_numpy(file["x"]), int(file["nfe"]))
        except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise UsageError(f"{path}: is damaged ({error}); remove it, and the same command draws it again") from error

    def remove(self) -> None:
        """Removes the folder, once what it holds is written elsewhere."""
        shutil.rmtree(self.folder)

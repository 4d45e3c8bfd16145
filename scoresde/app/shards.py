"""Samples in shards on disk, so that a long run of sampling that is killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import zlib
from abc import ABC, abstractmethod
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


class Shards(ABC):
    """A folder of shards, files named by the first of their samples.

    Args:
        folder: it is made.
        busy: what is said if another command holds it.
    """

    def __init__(self, folder: Path, busy: str) -> None:
        self.folder = folder
        self._busy = busy
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def write(self, first: int, samples: Samples) -> None:
        """Adds the shard that begins with a sample."""

    @final
    def path(self, first: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{first:012d}.npz"

    @final
    def has(self, first: int) -> bool:
        """Whether the shard that begins with a sample is there; a shard is there whole or not at all."""
        return self.path(first).exists()

    @final
    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder against another command."""
        return held(self.folder, f"{str(self.folder)!r}: {self._busy}; wait until it is done")

    @final
    def add(self, first: int, **arrays: Any) -> None:
        """Writes a shard of some arrays and numbers."""
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_bytes(self.path(first), content.getvalue())

    @final
    def remove(self) -> None:
        """Removes the folder, once what it holds is written elsewhere."""
        shutil.rmtree(self.folder)


def settings_digest(settings: Mapping[str, Any], size: int) -> str:
    """A checksum of `size` bytes of what JSON can hold."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=size).hexdigest()


@final
class SampleShards(Shards):
    """A folder of shards beside the output, of one command; its name has a checksum of all that the samples depend on.

    Args:
        output: the picture that is to be written in the end.
        settings: all that the samples depend on, as JSON can hold it.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        folder = output.with_name(f".{output.stem}.{settings_digest(settings, 6)}.shards")
        super().__init__(folder, "another command is drawing these samples")

    def write(self, first: int, samples: Samples) -> None:
        self.add(first, x=samples.x.cpu().numpy(), nfe=samples.nfe)

    def read(self, first: int) -> Samples:
        """The shard that begins with a sample.

        Raises:
            UsageError: for one that is damaged.
        """
        path = self.path(first)
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                return Samples(torch.from_numpy(file["x"]), int(file["nfe"]))
        except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise UsageError(f"{path}: is damaged ({error}); remove it, and the same command draws it again") from error

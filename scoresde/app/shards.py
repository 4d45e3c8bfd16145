"""Samples in parts on disk, so that a long run of sampling that is killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor


@final
class SampleShards:
    """A folder of parts beside the output, of one command: its name holds a checksum of all that the samples depend on.

    Args:
        output: the picture that is to be written in the end.
        settings: all that the samples depend on, as JSON can hold it.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6).hexdigest()
        self.folder = output.with_name(f".{output.stem}.{digest}.parts")
        self.folder.mkdir(exist_ok=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:012d}.npz"

    def has(self, first: int) -> bool:
        """Whether the part that begins with a sample is there; a part is there whole or not at all."""
        return self._path(first).exists()

    def write(self, first: int, x: Tensor, nfe: int) -> None:
        """Adds a part."""
        temporary = self._path(first).with_suffix(".partial.npz")
        np.savez(temporary, x=x.cpu().numpy(), nfe=nfe)
        os.replace(temporary, self._path(first))

    def join(self, firsts: range) -> tuple[Tensor, int]:
        """All parts one after the other, and the largest number of evaluations."""
        files = [np.load(self._path(first), allow_pickle=False) for first in firsts]
        return torch.cat([torch.from_numpy(file["x"]) for file in files]), max(int(file["nfe"]) for file in files)

    def remove(self) -> None:
        """Removes the folder, once what it holds is written elsewhere."""
        shutil.rmtree(self.folder)

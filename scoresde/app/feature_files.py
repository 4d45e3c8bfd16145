"""Features in files beside a result, so that a command that is killed goes on, and real data are looked at once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from samplers import Samples
from scoresde._batches import batches
from scoresde._files import write_bytes
from scoresde.app.files import held
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.data.arrays import ArrayData
from scoresde.data.info import fingerprint
from scoresde.metrics.features import FeatureNetwork, FeatureSet
from scoresde.metrics.features.sets import features_of, read_array
from scoresde.training.parallel import World

PART = 512  # real samples in a file


@final
class FeatureFiles:
    """A folder of features, a file for each shard of samples; its name has a checksum of all that they depend on.

    Args:
        folder: where the folder is made.
        network: gives the features.
        settings: what the samples depend on, as JSON can hold it.
        source: of the samples, in messages.
        trained: decodes samples that are drawn; None for raw ones.
    """

    def __init__(
        self,
        folder: Path,
        network: FeatureNetwork,
        settings: Mapping[str, Any],
        source: str,
        trained: Trained | None = None,
    ) -> None:
        content = json.dumps({"tag": network.tag} | dict(settings), sort_keys=True)
        self.folder = folder / ".features" / hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._network = network
        self._source = source
        self._trained = trained

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder against another command."""
        return held(
            self.folder, f"{str(self.folder)!r}: another command is computing these features; wait until it is done"
        )

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:012d}.npz"

    def has(self, first: int) -> bool:
        """Whether the shard that begins with a sample is there; it is there whole or not at all."""
        return self._path(first).exists()

    def write(self, first: int, samples: Samples) -> None:
        """Adds the features of samples that were drawn, in the model's units."""
        assert self._trained is not None
        self.add(first, self._trained.decode(samples.x), samples.nfe)

    def add(self, first: int, raw: Tensor, nfe: int = 0, progress: Progress | None = None) -> None:
        """Adds the features of raw samples, and how many evaluations of a network each of them took."""

        def advance(count: int) -> None:
            if progress is not None:
                progress.update(progress.count + count)

        content = io.BytesIO()
        np.savez(content, features=features_of(self._network, raw, self._source, advance).numpy(), nfe=nfe)
        write_bytes(self._path(first), content.getvalue())

    def read(self, count: int, labels: Tensor | None) -> FeatureSet:
        """The features of all shards, once they are there."""
        files = sorted(self.folder.glob("*.npz"))
        return FeatureSet(
            files, count, self._network.num_features, self._network.tag, self._source, labels, self._network.logits
        )

    def nfe(self) -> int:
        """The evaluations that a sample took."""
        return max(read_array(file, "nfe").item() for file in self.folder.glob("*.npz"))

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder)


def features_of_data(
    data: ArrayData, network: FeatureNetwork, folder: Path, source: str, world: World, device: torch.device
) -> FeatureSet:
    """The features of data, which are kept; each process computes its share."""
    files = FeatureFiles(folder, network, {"data": fingerprint(data), "part": PART}, source)
    with files.locked() if world.leader else contextlib.nullcontext():
        parts = list(batches(len(data), PART))[world.rank :: world.size]
        missing = [part for part in parts if not files.has(part.start)]
        total = sum(part.stop - part.start for part in missing)
        if missing:
            with Progress(f"features of {source}", total, unit="samples", shown=world.leader) as progress:
                for part in missing:
                    files.add(part.start, data.values[part], progress=progress)
        world.wait(device)
    return files.read(len(data), data.labels)

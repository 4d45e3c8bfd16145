"""Features in files beside a result, so that a command that is killed goes on, and real data are looked at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from samplers import Samples
from scoresde._batches import batches
from scoresde.app.progress import Progress
from scoresde.app.shards import Shards, settings_digest
from scoresde.app.trained import Trained
from scoresde.data.arrays import ArrayData
from scoresde.data.info import fingerprint
from scoresde.metrics.features import FeatureNetwork, FeatureSet
from scoresde.metrics.features.sets import features_of, read_array
from scoresde.training.parallel import World

PART = 512  # real samples in a file


@final
class FeatureFiles(Shards):
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
        digest = settings_digest({"tag": network.tag} | dict(settings), 8)
        super().__init__(folder / ".features" / digest, "another command is computing these features")
        self._network = network
        self._source = source
        self._trained = trained

    def write(self, first: int, samples: Samples) -> None:
        """Adds the features of samples that were drawn, in the model's units."""
        assert self._trained is not None
        raw = self._trained.decode(samples.x)
        self.add(first, features=features_of(self._network, raw, self._source).numpy(), nfe=samples.nfe)

    def look(self, first: int, raw: Tensor, progress: Progress) -> None:
        """Adds the features of raw samples."""

        def advance(count: int) -> None:
            progress.update(progress.count + count)

        self.add(first, features=features_of(self._network, raw, self._source, advance).numpy())

    def read(self, count: int, labels: Tensor | None) -> FeatureSet:
        """The features of all shards, once they are there."""
        files = sorted(self.folder.glob("*.npz"))
        return FeatureSet(
            files, count, self._network.num_features, self._network.tag, self._source, labels, self._network.logits
        )

    def nfe(self) -> int:
        """The evaluations that a sample took, of those that were drawn."""
        return max(read_array(file, "nfe").item() for file in self.folder.glob("*.npz"))


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
                    files.look(part.start, data.values[part], progress)
        world.wait(device)
    return files.read(len(data), data.labels)

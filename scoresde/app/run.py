"""A run in training, and what depends on the kind of model that it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import torch
from ml_collections import ConfigDict

from scoresde.app.init_from import Origin
from scoresde.app.parts import Prepared, with_parts
from scoresde.app.run_folder import RunFolder
from scoresde.data.arrays import ArrayData
from scoresde.data.info import DataInfo
from scoresde.models.base import TrainedModel
from scoresde.models.network import NetworkScoreModel
from scoresde.training import Trainer
from sde_configs import build


@final
@dataclass(frozen=True)
class Run:
    """A run in training: its folder, its trainer, and what its checkpoints say of it."""

    folder: RunFolder
    trainer: Trainer
    kind: Kind
    config: ConfigDict
    description: dict[str, Any]
    info: DataInfo
    data: ArrayData
    held_out: ArrayData | None
    origin: Origin | None

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.trainer.world.leader


class Kind(ABC):
    """What runs do differently for different kinds of models. All processes of a run call it; the leader writes."""

    @abstractmethod
    def prepare(
        self, folder: RunFolder, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
    ) -> Prepared:
        """Data as they were read, as the model is trained on them."""

    @abstractmethod
    def build_model(self, config: ConfigDict, data: ArrayData) -> TrainedModel:
        """The model with fresh weights."""

    @abstractmethod
    def measure(self, run: Run, held_out: ArrayData) -> dict[str, Any]:
        """What is logged of held-out samples at a checkpoint, beside their loss."""

    @abstractmethod
    def complete(self, run: Run) -> None:
        """Brings what of the model is measured, not trained, up to date, before a checkpoint is written."""

    @abstractmethod
    def draw(self, run: Run) -> None:
        """Draws a quick look at what the averaged model has learned, `run.folder.demo(step)`."""

    @abstractmethod
    def finish(self, run: Run) -> str:
        """Writes what belongs beside the checkpoints of a trained model; returns what to do with it, in one line."""


class ScoreModelKind(Kind):
    """What runs of score models have in common; those of some draw other pictures."""

    @final
    def prepare(
        self, folder: RunFolder, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
    ) -> Prepared:
        """The data with encoded captions, and in latents, as the configuration says."""
        return with_parts(folder.path, config, data, held_out, device)

    @final
    def build_model(self, config: ConfigDict, data: ArrayData) -> NetworkScoreModel:
        return build.build_model(config, data)

    @final
    def measure(self, run: Run, held_out: ArrayData) -> dict[str, Any]:
        return {}

    @final
    def complete(self, run: Run) -> None:
        """Nothing is measured."""

"""`--mode train_classifier`: from a configuration to a trained classifier of noisy samples in a folder.

The run is one as `--mode train` makes it, of another kind of model.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from ml_collections import ConfigDict

from scoresde import plots
from scoresde._files import write_bytes
from scoresde.app.config import as_classifier, load_config, override
from scoresde.app.device import choose_device
from scoresde.app.flags import TrainClassifierFlags
from scoresde.app.parts import Prepared
from scoresde.app.run import Kind, Run
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import run_name
from scoresde.app.training_run import train_in
from scoresde.data.arrays import ArrayData
from scoresde.metrics import LevelScores, score_by_noise_level
from scoresde.models.classifier import NoisyClassifier
from scoresde.training import leave_world
from sde_configs import build

SCORED = 2000  # samples at most that are classified at each noise level


def train_classifier(flags: TrainClassifierFlags, overrides: Sequence[str]) -> int:
    """Trains the classifier that flags and overrides ask for; returns the exit status."""
    folder = RunFolder(Path(flags.workdir or f"runs/{run_name(flags.sde, flags.config)}-classifier"))
    config = as_classifier(load_config(flags.sde, flags.config))
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    status = train_in(folder, config, choose_device(flags.device), ClassifierKind())
    leave_world()
    return status


@final
class ClassifierKind(Kind):
    """A run that trains a classifier of noisy samples."""

    def prepare(
        self, folder: RunFolder, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
    ) -> Prepared:
        """The data as they are."""
        return Prepared(data, held_out, {})

    def build_model(self, config: ConfigDict, data: ArrayData) -> NoisyClassifier:
        return build.build_classifier(config, data)

    def measure(self, run: Run, held_out: ArrayData) -> dict[str, Any]:
        """Loss and accuracy of the averaged weights by noise level."""
        scores = _scores(run, held_out)
        return {
            "noise_levels": scores.noise_levels.tolist(),
            "held_out_loss_by_level": scores.losses.tolist(),
            "held_out_accuracy_by_level": scores.accuracies.tolist(),
        }

    def complete(self, run: Run) -> None:
        """Nothing is measured."""

    def draw(self, run: Run) -> None:
        """Loss and accuracy by noise level, of the training samples and the held-out ones."""
        parts = {"training": run.data} | ({} if run.held_out is None else {"held out": run.held_out})
        scores = {name: _scores(run, data) for name, data in parts.items()}
        if run.leader:
            noise_levels = next(iter(scores.values())).noise_levels
            figure = plots.classification(
                noise_levels,
                {name: found.losses for name, found in scores.items()},
                {name: found.accuracies for name, found in scores.items()},
                run.data.num_classes,
            )
            picture = plots.image_of(figure, dpi=120)
            write_bytes(run.folder.demo(run.trainer.step_number), plots.png_bytes(picture))

    def finish(self, run: Run) -> str:
        place = shlex.quote(str(run.folder.path))
        return f"guide with it: python main.py --mode sample --workdir MODEL --guidance 4 --guide_with {place}"


def _scores(run: Run, data: ArrayData) -> LevelScores:
    """What the averaged weights reach on the first samples of a part of the data."""
    trainer = run.trainer
    some = data.select(torch.arange(min(SCORED, len(data)), device=data.values.device))
    size = build.build_batch_size(run.config, trainer.model.shape, trainer.device)
    with trainer.average.applied(trainer.model):
        return score_by_noise_level(trainer.model, some, batch_size=size)

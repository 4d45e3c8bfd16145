"""`--mode train`: from a configuration to a trained model in a folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch

from samplers import Heun, sample
from scoresde import condition
from scoresde.app.config import is_upsampler, load_config, override
from scoresde.app.device import choose_device
from scoresde.app.flags import TrainFlags
from scoresde.app.init_from import Origin
from scoresde.app.pictures import save_picture
from scoresde.app.pipeline import write_pipeline
from scoresde.app.run import Run, ScoreModelKind
from scoresde.app.run_folder import RunFolder
from scoresde.app.train_upsampler import UpsamplerKind
from scoresde.app.training_run import train_in
from scoresde.checkpoint import read_header
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.models.latent_codec import in_parts, raw_shape
from scoresde.training import leave_world
from sde_configs import build

DEMO_SAMPLES = 100


def train(flags: TrainFlags, overrides: Sequence[str]) -> int:
    """Trains what flags and overrides ask for; returns the exit status."""
    folder = RunFolder(Path(flags.workdir or f"runs/{run_name(flags.sde, flags.config)}"))
    origin = None
    if flags.init_from is not None:
        require(flags.workdir is not None, f"init_from={flags.init_from!r}: name the new run's folder with --workdir")
        origin = Origin.of(flags.init_from, folder)
    config = load_config(flags.sde, flags.config) if origin is None else origin.base(flags.sde, flags.config)
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    kind = UpsamplerKind() if is_upsampler(config) else ScoreKind()
    status = train_in(folder, config, choose_device(flags.device), kind, origin)
    leave_world()
    return status


def run_name(sde: str | None, config: str | None) -> str:
    """The name of a run that is not named: that of its SDE, its recipe, or both."""
    recipe = Path(config or "vp").stem
    if sde and config:
        return f"{recipe}-{sde}"
    return sde or recipe


@final
class ScoreKind(ScoreModelKind):
    """A run that trains a score model."""

    def draw(self, run: Run) -> None:
        """Samples, by 20 Heun steps: of all classes in turn, or with the conditions of held-out data."""
        trainer = run.trainer
        info = run.info
        labels = torch.arange(DEMO_SAMPLES) % info.num_classes if info.num_classes else None
        cond: Condition = labels
        if labels is None and run.data.cond is not None:
            shown = run.data if run.held_out is None else run.held_out
            cond = condition.spread(shown.conditions(slice(DEMO_SAMPLES)), DEMO_SAMPLES)
        with trainer.average.applied(trainer.model):
            size = build.build_batch_size(run.config, trainer.model.shape, trainer.device)
            x, _ = sample(trainer.model, Heun(), DEMO_SAMPLES, cond=cond, batch_size=size)
            codec = trainer.model.codec
            raw = in_parts(codec.decode, x, raw_shape(codec, trainer.model.shape))
        if run.leader:
            save_picture(run.folder.demo(trainer.step_number), raw, info, labels)

    def finish(self, run: Run) -> str:
        """Writes the pipeline of a model with parts that are trained apart."""
        file = run.folder.checkpoint_path(run.trainer.step_number)
        write_pipeline(run.folder.path / "pipeline.json", file, read_header(file))
        return f"sample: python main.py --mode sample --sampler pc --workdir {shlex.quote(str(run.folder.path))}"

"""`--mode train` of an upsampler: what differs from other score models."""

from __future__ import annotations

import shlex
from typing import final

import torch
from torch import Tensor

from samplers import Heun, sample
from samplers.cascades import low_condition
from scoresde.app.pictures import save_stages
from scoresde.app.run import Run, ScoreModelKind
from scoresde.upsampling import UpsamplingObjective
from sde_configs import build

DEMO_SAMPLES = 40
DEMO_NOISE = 0.1  # s, or the largest that was trained with


@final
class UpsamplerKind(ScoreModelKind):
    """A run that trains an upsampler."""

    def draw(self, run: Run) -> None:
        """Held-out samples at low resolution, what 20 Heun steps make of them, and the samples themselves."""
        trainer = run.trainer
        model = trainer.model
        upsampling = trainer.objective
        assert isinstance(upsampling, UpsamplingObjective)
        data = run.data if run.held_out is None else run.held_out
        index = torch.arange(min(DEMO_SAMPLES, len(data)))
        raw = data.values[index].cpu()
        with trainer.average.applied(model), torch.no_grad():
            low = model.codec.decode(upsampling.reduce(model.codec.encode(raw.to(model.device), model.dtype)))
            noise = min(DEMO_NOISE, upsampling.largest_noise)
            cond = low_condition(model, upsampling, low, noise, 0, data.conditions(index))
            size = build.build_batch_size(run.config, model.shape, trainer.device)
            drawn = model.codec.decode(sample(model, Heun(), len(raw), cond=cond, batch_size=size).x).cpu()
        if run.leader:
            labels = data.labels[index] if isinstance(data.labels, Tensor) else None
            stages = [(part, run.info) for part in (low.cpu(), drawn, raw)]
            save_stages(run.folder.demo(trainer.step_number), stages, labels)

    def finish(self, run: Run) -> str:
        return f"sample: python main.py --mode sample --sampler pc --cascade BASE,{shlex.quote(str(run.folder.path))}"

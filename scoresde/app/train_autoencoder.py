"""`--mode train_autoencoder`: from a configuration to a trained autoencoder in a folder, for latent models.

The run is one as `--mode train` makes it, of another kind of model.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

from scoresde import plots
from scoresde._batches import batches, choose_batch_size
from scoresde._files import write_bytes
from scoresde.app.config import as_autoencoder, load_config, override
from scoresde.app.device import choose_device
from scoresde.app.flags import TrainAutoencoderFlags
from scoresde.app.parts import Prepared
from scoresde.app.pictures import save_picture
from scoresde.app.run import Kind, Run
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import run_name
from scoresde.app.training_run import train_in
from scoresde.data.arrays import ArrayData
from scoresde.models.autoencoder import Autoencoder
from scoresde.networks.quantizers import perplexity
from scoresde.training import leave_world
from sde_configs import build

MEASURED = 2000  # samples at most that are reconstructed at a checkpoint
SHOWN = 20  # images in a row of the picture
LATENTS = 3  # channels of the latents that are shown


def train_autoencoder(flags: TrainAutoencoderFlags, overrides: Sequence[str]) -> int:
    """Trains the autoencoder that flags and overrides ask for; returns the exit status."""
    folder = RunFolder(Path(flags.workdir or f"runs/{run_name(None, flags.config)}-autoencoder"))
    config = as_autoencoder(load_config(None, flags.config))
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    status = train_in(folder, config, choose_device(flags.device), AutoencoderKind())
    leave_world()
    return status


@final
class AutoencoderKind(Kind):
    """A run that trains an autoencoder."""

    def prepare(
        self, folder: RunFolder, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
    ) -> Prepared:
        """The data as they are."""
        return Prepared(data, held_out, {})

    def build_model(self, config: ConfigDict, data: ArrayData) -> Autoencoder:
        return build.build_autoencoder(config, data)

    def measure(self, run: Run, held_out: ArrayData) -> dict[str, Any]:
        """The error of reconstructions by the averaged weights, and of codes how evenly they are used."""
        some = held_out.select(torch.arange(min(MEASURED, len(held_out))))
        with run.trainer.average.applied(run.trainer.model):
            return reconstruction_scores(run.trainer.model, some, run.info.high - run.info.low)

    def complete(self, run: Run) -> None:
        """Measures mean and deviation of the latents over the training set, with the averaged weights."""
        model = run.trainer.model
        with run.trainer.average.applied(model):
            model.measure_latents(run.data.blocks())
            measured = model.latent_mean.clone(), model.latent_std.clone()
        for buffer, value in zip((model.latent_mean, model.latent_std), measured, strict=True):
            buffer.copy_(value)
        run.trainer.average.copy_buffers()

    def draw(self, run: Run) -> None:
        """Held-out samples, their reconstructions, and the first channels of their latents."""
        data = run.data if run.held_out is None else run.held_out
        raw = data.values[:SHOWN]
        model = run.trainer.model
        with run.trainer.average.applied(model), torch.no_grad():
            z = model.plain().encode(model.codec.encode(raw.to(model.device), model.dtype)).mean
            back = model.codec.decode(model.plain().decode(z)).cpu()
        if not run.leader:
            return
        path = run.folder.demo(run.trainer.step_number)
        if raw.ndim != 4:
            save_picture(path, back, run.info)
            return
        channels = 3 if raw.shape[1] >= 3 else 1
        rows = [run.info.to_unit(part[:, :channels].float()) for part in (raw, back)]
        rows += [part.expand_as(rows[0]) for part in _shown_latents(z.cpu(), raw.shape[2:])]
        write_bytes(path, plots.png_bytes(plots.image_grid(torch.cat(rows), len(raw))))

    def finish(self, run: Run) -> str:
        place = shlex.quote(str(run.folder.path))
        return f"learn its latents: python main.py --mode train --config.data.autoencoder={place} --workdir NEW"


def _shown_latents(z: Tensor, size: torch.Size) -> list[Tensor]:
    """The first channels of latents as grey images of a size, three deviations from black to white."""
    shown = z[:, :LATENTS]
    std, mean = torch.std_mean(shown, (0, 2, 3), keepdim=True)
    grey = ((shown - mean) / std.clamp(min=1e-12) / 6 + 0.5).clamp(0, 1)
    return list(F.interpolate(grey, size=size, mode="nearest").split(1, 1))


@torch.no_grad()
def reconstruction_scores(model: Autoencoder, data: ArrayData, span: float) -> dict[str, Any]:
    """The mean peak signal-to-noise ratio of reconstructions in dB, the rate, and the perplexity of codes.

    Args:
        model: the autoencoder, in evaluation mode.
        data: samples.
        span: of raw values, from the smallest to the largest that they can have.
    """
    ratios = []
    rates = []
    codes = []
    size = choose_batch_size(None, model.shape, model.device)
    for part in batches(len(data), size):
        raw = data.values[part].to(model.device)
        latents = model.plain().encode(model.codec.encode(raw, model.dtype))
        back = model.codec.decode(model.plain().decode(latents.mean))
        error = (back - raw).square().flatten(1).mean(1).double()
        ratios.append(10 * (math.log10(span**2) - error.clamp(min=1e-12).log10()))
        rates.append(latents.divergence().double() / math.prod(data.shape))
        if latents.codes is not None:
            codes.append(latents.codes.flatten())
    found: dict[str, Any] = {"held_out_psnr": torch.cat(ratios).mean().item()}
    if not codes:
        return found | {"held_out_rate": torch.cat(rates).mean().item()}
    return found | {"held_out_perplexity": perplexity(torch.cat(codes))}

"""An autoencoder: held-out samples, what comes back, and whether its latents suit a generative model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde import checkpoint as checkpoint_file
from scoresde import plots
from scoresde._batches import batches, choose_batch_size
from scoresde.app.config import of_checkpoint, override_sampling
from scoresde.app.device import choose_device
from scoresde.app.figures.subject import FigureOptions
from scoresde.app.flags import VisualizeFlags
from scoresde.app.run_folder import RunFolder, checkpoint_at
from scoresde.app.trained import Trained
from scoresde.app.user_data import data_of, own_data
from scoresde.data.arrays import ArrayData
from scoresde.data.info import DataInfo
from scoresde.descriptions import AUTOENCODER, SCORE
from scoresde.errors import UsageError, require
from scoresde.models.latent_codec import AutoencoderCodec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 10
LAW_OF = 500  # samples whose latents make the histograms
NOT_TAKEN = ("sde", "pipeline", "autoencoder", "text_encoder")  # beside the run of an autoencoder itself


@final
@dataclass(frozen=True)
class AutoencoderSubject:
    """An autoencoder, and samples to look at.

    Attributes:
        codec: the autoencoder, with the scale of its latents, on the device of the picture.
        data: raw samples.
        held_out: whether they were held out.
        info: of the data.
        config: of the run.
        device: where to compute.
    """

    codec: AutoencoderCodec
    data: ArrayData
    held_out: bool
    info: DataInfo
    config: ConfigDict
    device: torch.device


def autoencoder_subject(flags: VisualizeFlags, overrides: Sequence[str]) -> tuple[AutoencoderSubject, Path]:
    """The autoencoder of the run that flags name, which may be that of a latent model; and the folder of its pictures.

    Raises:
        UsageError: for a run of another kind, or without data.
    """
    require(flags.config is None, f"config={flags.config!r}: a checkpoint holds its own; leave it out")
    given = flags.checkpoint or flags.workdir
    if given is not None and not (flags.checkpoint and flags.workdir):
        file = checkpoint_at(given, "checkpoint" if flags.checkpoint else "workdir")
        models = checkpoint_file.read_header(file)["models"]
        if AUTOENCODER in models and SCORE not in models:
            return _of_autoencoder(file, flags, overrides)
    trained = Trained.of(flags, overrides)
    codec = trained.network_model.codec
    if not isinstance(codec, AutoencoderCodec):
        raise UsageError(
            f"checkpoint={str(trained.checkpoint.path)!r}: its model learns the data themselves, not latents; name a "
            "run of --mode train_autoencoder, or of a latent model, with --workdir"
        )
    train, held_out = own_data(trained)
    data = train if held_out is None else held_out
    return AutoencoderSubject(
        codec, data, held_out is not None, trained.data, trained.config, trained.device
    ), trained.folder


def _of_autoencoder(file: Path, flags: VisualizeFlags, overrides: Sequence[str]) -> tuple[AutoencoderSubject, Path]:
    """The autoencoder of its own run."""
    source = f"checkpoint={str(file)!r}"
    for name in NOT_TAKEN:
        value = getattr(flags, name)
        require(value is None, f"{name}={value!r}: {source} is an autoencoder itself; leave --{name} out")
    loaded = checkpoint_file.load(file)
    require(
        {"config", "data"} <= loaded.description.keys(),
        f"{source}: was saved from Python, and its data are not known; give a run of --mode train_autoencoder",
    )
    config = of_checkpoint(loaded.description["config"], has_sde=False)
    override_sampling(config, overrides)
    info = DataInfo.from_json(loaded.description["data"], source)
    train, held_out = data_of(loaded, config, info)
    run = RunFolder.of_checkpoint(file)
    codec = checkpoint_file.load_autoencoder(file, device := choose_device(flags.device))
    data = train if held_out is None else held_out
    folder = file.parent / "samples" if run is None else run.samples
    return AutoencoderSubject(codec, data, held_out is not None, info, config, device), folder


def draw(subject: AutoencoderSubject, options: FigureOptions) -> Figure:
    """Samples, reconstructions, differences, latents by channel, and their histograms beside N(0, 1)."""
    count = COLUMNS if options.num_samples is None else options.num_samples
    require(count >= 1, f"num_samples={count}: need at least 1")
    codec = subject.codec
    shape = codec.encoded_shape(subject.data.shape)
    raw = subject.data.values[:count]
    with torch.no_grad():
        z = codec.encode(raw.to(subject.device))
        back = codec.decode(z).cpu()
    data, back = (subject.info.to_unit(part.float()) for part in (raw, back))
    error = (back - data).square().flatten(1).mean(1).clamp(min=1e-12)
    law, drawn = _law(subject, options.seed)
    what = "held-out samples" if subject.held_out else "training samples"
    fewer = math.prod(subject.data.shape) / math.prod(shape)
    return plots.autoencoder(
        plots.Encoded(
            data,
            back,
            z.cpu(),
            law,
            [f"{-10 * math.log10(value):.1f} dB" for value in error.tolist()],
            f"{what} of {_sizes(subject.data.shape)} as latents of {_sizes(shape)}, {fewer:.3g} times fewer numbers",
            f"latents of {len(law)} {what}{', drawn from the encoder' if drawn else ''}, beside N(0, 1)",
        )
    )


@torch.no_grad()
def _law(subject: AutoencoderSubject, seed: int) -> tuple[Tensor, bool]:
    """Latents of many samples, and whether the encoder has a variance, with which they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    drawn = False
    count = min(LAW_OF, len(subject.data))
    for part in batches(count, choose_batch_size(None, subject.data.shape, subject.device)):
        mean, std = subject.codec.posterior(subject.data.values[part].to(subject.device))
        drawn = std is not None
        eps = torch.randn(mean.shape, generator=generator)
        parts.append(mean.cpu() if std is None else mean.cpu() + std.cpu() * eps)
    return torch.cat(parts), drawn


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))

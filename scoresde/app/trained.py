"""A trained model as the commands use it: what every mode but train starts from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde import checkpoint as checkpoint_file
from scoresde import condition
from scoresde.app.config import is_upsampler, load_config, of_checkpoint, override_sampling
from scoresde.app.device import choose_device
from scoresde.app.flags import TrainedFlags
from scoresde.app.guiding import Guiding
from scoresde.app.parts import TEXT_ENCODER, autoencoder_at, examples_of, recorded_text_encoder
from scoresde.app.pipeline import AUTOENCODER, GENERATOR, GivenParts, check_latents, read_pipeline
from scoresde.app.run_folder import HOW_TO_TRAIN, RunFolder, newest_run
from scoresde.checkpoint import Checkpoint, named_models
from scoresde.condition import Condition
from scoresde.data.info import DataInfo
from scoresde.descriptions import SCORE
from scoresde.errors import UsageError, require
from scoresde.models.latent_codec import AutoencoderCodec, in_parts, raw_shape
from scoresde.models.network import NetworkScoreModel
from scoresde.score_model import ScoreModel
from scoresde.text import TextEncoder
from sde_configs import build

PILOT_CAPTIONS = 16  # that stand for all


@final
@dataclass(frozen=True)
class Trained:
    """A checkpoint with all that belongs to it.

    Attributes:
        checkpoint: the file.
        config: the run's configuration, with the sampling fields of the command line.
        device: where to compute.
        data: what the model was trained on.
        folder: where results go: samples/ of the run, or of the folder that the checkpoint lies in.
        run: the folder of the run, if the checkpoint lies in one.
        seed: of samples and other draws.
        guiding: how the model is guided.
        low: of an upsampler: the image, and its noise, of some samples, for pilot runs.
        parts: the autoencoder and the text encoder that take the place of the model's own, by their flags.
    """

    checkpoint: Checkpoint
    config: ConfigDict
    device: torch.device
    data: DataInfo
    folder: Path
    run: RunFolder | None
    seed: int
    guiding: Guiding
    parts: GivenParts
    low: Condition = None

    @classmethod
    def of(cls, flags: TrainedFlags, overrides: Sequence[str], in_cascade: bool = False) -> Trained:
        """The checkpoint that flags ask for: a file, that of a folder, of an SDE's run, or of the newest run.

        An upsampler, which needs samples to begin from, is taken in a cascade only.

        Raises:
            UsageError: if there is none, it cannot be read, or the flags contradict each other or it.
        """
        sde = flags.sde
        workdir = flags.workdir
        file = flags.checkpoint
        wanted = load_config(sde, None).sde.name if sde else None
        parts = GivenParts(flags.autoencoder, flags.text_encoder)
        require(not (file and workdir), f"checkpoint={file!r}, workdir={workdir!r}: give one of the two")
        if flags.pipeline is not None:
            others = {GENERATOR: file or workdir, AUTOENCODER: parts.autoencoder, TEXT_ENCODER: parts.text_encoder}
            pipeline = read_pipeline(flags.pipeline, [name for name, other in others.items() if other])
            parts = parts.filled_from(pipeline)
            file = file or pipeline.generator
        run: RunFolder | None
        if file is not None:
            loaded = checkpoint_file.load(file)
            run = RunFolder.of_checkpoint(loaded.path)
        else:
            run = RunFolder(Path(workdir or f"runs/{sde}")) if workdir or sde else newest_run(Path("runs"))
            newest = run.newest_checkpoint()
            if newest is None:
                raise UsageError(f"workdir={str(run.path)!r}: nothing is trained there yet; {HOW_TO_TRAIN}")
            loaded = newest
            if os.environ.get("RANK", "0") == "0":  # the first of the processes that torchrun started, or the only one
                print(f"using {run.path}, step {loaded.step}", flush=True)
        source = f"checkpoint={str(loaded.path)!r}"
        require(
            {"config", "data"} <= loaded.description.keys(),
            f"{source}: was saved from Python and holds a model alone; sample from it there: "
            f"samplers.sample(scoresde.load_model({str(loaded.path)!r}), samplers.Heun(), 100)",
        )
        models = loaded.description["models"]
        require(
            SCORE in models,
            f"{source}: holds {named_models(models)} and no score model; give a run of --mode train",
        )
        config = of_checkpoint(loaded.description["config"])
        require(
            wanted in (None, config.sde.name),
            f"sde={sde!r}: this model was trained under {config.sde.name}; leave --sde out, or choose another run",
        )
        require(
            in_cascade or not is_upsampler(config),
            f"{source}: is an upsampler, which enlarges the samples of another model; it is sampled from by --mode "
            f"sample --cascade BASE,{loaded.path if run is None else run.path}",
        )
        override_sampling(config, overrides)
        data = DataInfo.from_json(loaded.description["data"], source)
        folder = loaded.path.parent / "samples" if run is None else run.samples
        seed = config.seed if flags.seed is None else flags.seed
        require(0 <= seed < 2**64, f"seed={seed}: need 0 <= seed < 2**64")
        guiding = Guiding.of(flags, config)
        return cls(loaded, config, choose_device(flags.device), data, folder, run, seed, guiding, parts)

    @cached_property
    def network_model(self) -> NetworkScoreModel:
        """The trained model itself, with averaged weights, on the device."""
        file = self._given_autoencoder
        model = self.checkpoint.model(autoencoder=file).to(self.device)
        if file is not None:
            check_latents(model, self.checkpoint, file)
        return model

    @cached_property
    def _given_autoencoder(self) -> Path | None:
        """The file of the autoencoder that takes the place of the model's own."""
        given = self.parts.autoencoder
        return None if given is None else autoencoder_at(given)

    @cached_property
    def raw_shape(self) -> tuple[int, ...]:
        """The shape of a sample as it is decoded."""
        return raw_shape(self.network_model.codec, self.network_model.shape)

    @cached_property
    def model(self) -> ScoreModel:
        """The model that is sampled from: compiled, guided and then thresholded, as flags and configuration say."""
        if self.config.sampling.compile:
            self.network_model.network.compile()
        return self.guided_by(self.guiding)

    def guided_by(self, guiding: Guiding) -> ScoreModel:
        """The same, guided in another way."""
        model = self.network_model
        guided = guiding.apply(model, self._example, self.checkpoint, self._given_autoencoder)
        return build.threshold(self.config, guided, model.codec, self.data.low, self.data.high)

    def batch_size(self, graphs: int = 0) -> int:
        """Samples at a time: what the user asks for, or else what needs no more memory than a step of training.

        Args:
            graphs: evaluations of the model through which is differentiated at a time.
        """
        return build.build_batch_size(self.config, self.network_model.shape, self.device, graphs)

    def sampling_key(self) -> dict[str, Any]:
        """All that `model` depends on, as JSON can hold it: what is kept for one key is not used for another."""
        sampling = self.config.sampling
        codec = self.network_model.codec
        return {
            "digest": self.checkpoint.digest,
            **({"autoencoder": codec.digest} if isinstance(codec, AutoencoderCodec) else {}),
            "threshold": sampling.threshold,
            "quantile": sampling.quantile if sampling.threshold == "dynamic" else None,
        } | self.guiding.key()

    @property
    def _labelled(self) -> DataInfo:
        """The data whose classes samples can have: those of the model, or of the classifier that guides it."""
        return self.data if self.data.num_classes else self.guiding.classes or self.data

    @property
    def every_condition(self) -> Condition:
        """Each class once, or some captions, for pilot runs, which repeat them; None without conditions."""
        return self.conditions(PILOT_CAPTIONS if self.captioned else max(1, self._labelled.num_classes))

    @property
    def captioned(self) -> bool:
        """Whether the model was trained with captions."""
        return TEXT_ENCODER in self.checkpoint.description

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The encoder of its captions."""
        return recorded_text_encoder(self.checkpoint, self.parts.text_encoder, self.device)

    @property
    def _example(self) -> Condition:
        """A condition that the model takes; None for one without."""
        if self.captioned:
            return self.text_encoder.encode([""])
        return torch.zeros(1, dtype=torch.long) if self.data.num_classes else None

    def without_caption(self, num_samples: int) -> Condition:
        """The condition that there is no caption, of samples of a model of captions."""
        return condition.spread(self.text_encoder.encode([""]), num_samples)

    def of_texts(self, texts: Sequence[str], num_samples: int) -> Condition:
        """Conditions of samples with some captions in turn.

        Raises:
            UsageError: for a model without captions.
        """
        require(
            self.captioned,
            f"prompt={'|'.join(texts)!r}: this model was trained without captions; leave --prompt out",
        )
        for note in self.text_encoder.notes(texts):
            print(note, flush=True)
        every: Condition = self.text_encoder.encode(texts)
        try:
            self.network_model.check_cond(condition.to(every, self.device))
        except UsageError as error:
            raise UsageError(f"text_encoder={self.parts.text_encoder!r}: does not suit the model ({error})") from error
        return condition.take(every, torch.arange(num_samples) % len(texts))

    def conditions(self, num_samples: int, labels: str | None = None) -> Condition:
        """Conditions of samples: "3", "3,1,4" or "cat,dog" repeated to their number; by default all classes in turn.

        Those of a model of captions are captions of its data in turn.

        Raises:
            UsageError: for labels that the model does not know.
        """
        if self.captioned:
            require(labels is None, f"labels={labels!r}: this model was trained with captions; give a --prompt instead")
            return self._with_low(self.of_texts(examples_of(self.checkpoint), num_samples), num_samples)
        known = self._labelled
        classes = known.num_classes
        if labels is None:
            every = torch.arange(num_samples) % classes if classes else None
            return self._with_low(every, num_samples)
        require(classes > 0, f"labels={labels!r}: this model was trained without classes; leave --labels out")
        try:
            given = torch.tensor([known.class_number(part.strip()) for part in labels.split(",")])
        except UsageError as error:
            raise UsageError(
                f"labels={labels!r}: {error}; give classes between commas, as in --labels=3,1,4"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"labels={labels!r}: larger than any class number") from error
        try:
            self.model.check_cond(given)
        except UsageError as error:
            raise UsageError(f"labels={labels!r}: {str(error).removeprefix('cond: ')}") from error
        return given.repeat(-(-num_samples // len(given)))[:num_samples]

    def _with_low(self, cond: Condition, num_samples: int) -> Condition:
        """A condition, and for an upsampler what it is given, repeated to the number of samples."""
        low = condition.spread(self.low, num_samples)
        if not isinstance(low, Mapping):
            return cond
        return {**low, **(cond if isinstance(cond, Mapping) else {} if cond is None else {"label": cond})}

    def decode(self, x: Tensor) -> Tensor:
        """The raw data of samples, on the host."""
        return in_parts(self.network_model.codec.decode, x.to(self.device), self.raw_shape)

    def on(self, device: torch.device) -> Trained:
        """The same on another device."""
        return replace(self, device=device)

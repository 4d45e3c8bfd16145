"""The flags of each mode of the command line, declared once.

The parser, `--mode X --help` and the message "belongs to --mode X" are made from these classes. A mode's own module is
imported when the mode is called, so that a mistaken flag is answered before.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


def flag(default: Any, description: str) -> Any:
    """A flag with its default and what `--help` says of it."""
    return dataclasses.field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Flags:
    """Of a mode.

    Attributes:
        instead: flags of other modes, with what this mode has in their place.
    """

    instead: ClassVar[Mapping[str, str]] = {}

    def given(self) -> set[str]:
        """Names of the flags that do not have their defaults."""
        return {name for name, f in named(type(self)).items() if getattr(self, f.name) != f.default}


def named(flags: type[Flags]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a class by the names of their flags: `from_` is --from, because Python keeps `from` to itself."""
    return {field.name.rstrip("_"): field for field in dataclasses.fields(flags)}


@dataclass(frozen=True)
class ComputingFlags(Flags):
    """Of modes that call a network."""

    seed: int | None = flag(None, "of training, or of the samples (the configuration's, 0)")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class TrainFlags(ComputingFlags):
    """Of --mode train."""

    instead: ClassVar[Mapping[str, str]] = {
        "num_steps": "--config.training.num_steps",
        "input": "--config.data.path",
        "checkpoint": "--init_from",
    }

    sde: str | None = flag(None, "{sdes} (vp)")
    config: str | None = flag(None, "a recipe, or a .py or .json file; --config.FIELD=VALUE changes a field")
    workdir: str | None = flag(None, "folder of the run (runs/<sde>)")
    init_from: str | None = flag(None, "a checkpoint, or a run's folder: begin a new run with its weights and settings")


@dataclass(frozen=True)
class TrainClassifierFlags(ComputingFlags):
    """Of --mode train_classifier."""

    instead: ClassVar[Mapping[str, str]] = {
        "num_steps": "--config.training.num_steps",
        "input": "--config.data.path",
    }

    sde: str | None = flag(None, "{sdes} (vp)")
    config: str | None = flag(None, "a recipe, or a .py or .json file, as of the score model that it is to guide")
    workdir: str | None = flag(None, "folder of the run (runs/<sde>-classifier)")


@dataclass(frozen=True)
class TrainAutoencoderFlags(ComputingFlags):
    """Of --mode train_autoencoder."""

    instead: ClassVar[Mapping[str, str]] = {
        "num_steps": "--config.training.num_steps",
        "input": "--config.data.path",
    }

    config: str | None = flag(None, "a recipe, or a .py or .json file: that of an autoencoder, or of a model to train")
    workdir: str | None = flag(None, "folder of the run (runs/<config>-autoencoder)")


@dataclass(frozen=True)
class TrainTextEncoderFlags(ComputingFlags):
    """Of --mode train_text_encoder."""

    instead: ClassVar[Mapping[str, str]] = {
        "num_steps": "--config.training.num_steps",
        "input": "--config.data.path",
    }

    config: str | None = flag(None, "a recipe, or a .py or .json file: that of a text encoder, or of a model to train")
    workdir: str | None = flag(None, "folder of the run (runs/<config>-text)")


@dataclass(frozen=True)
class AverageFlags(Flags):
    """Of --mode average."""

    instead: ClassVar[Mapping[str, str]] = {"num_steps": "--step", "checkpoint": "--workdir"}

    workdir: str | None = flag(None, "folder of a run trained with config.training.ema_lengths (the newest run)")
    length: float | None = flag(None, "standard deviation of the average over the steps before it, as in 0.07")
    step: int | None = flag(None, "the step at which to average, that of a snapshot (the last one)")
    output: str | None = flag(None, "the checkpoint to write, .safetensors, or a folder (checkpoints/ of the run)")


@dataclass(frozen=True)
class TrainedFlags(ComputingFlags):
    """Of modes that use a trained model."""

    sde: str | None = flag(None, "the run of an SDE, runs/<sde> (the newest run)")
    workdir: str | None = flag(None, "folder of the run (the newest run)")
    checkpoint: str | None = flag(None, "a file; in no run, samples/ lies beside it (the newest of the run)")
    pipeline: str | None = flag(None, "a file that names a latent model's parts: see docs/latent-and-text.md (none)")
    autoencoder: str | None = flag(None, "of latents: another run or file, or the new place of the model's (its own)")
    text_encoder: str | None = flag(None, "of captions: another one, or the new place of the model's (its own)")
    guidance: float | None = flag(None, "weight of guidance: see docs/guidance.md (none)")
    guidance_interval: str | None = flag(None, "noise levels with guidance, as in 0.3,1.6 (all)")
    guide_with: str | None = flag(
        None, "a classifier's checkpoint or run: guide by it; a worse model's: guide away from it"
    )


@dataclass(frozen=True)
class SampleFlags(TrainedFlags):
    """Of --mode sample."""

    cascade: str | None = flag(None, "instead of one run: runs or checkpoints, small to large, as in BASE,UPSAMPLER")
    sampler: str = flag("pc", "{samplers}: see docs/samplers.md")
    num_samples: int = flag(100, "how many")
    num_steps: int | None = flag(None, "of the sampler (its default)")
    labels: str | None = flag(None, "classes, as in 3 or 3,1,4 (all in turn)")
    prompt: str | None = flag(None, "what is to be seen, several between |, or a .txt file with one a line (captions)")
    output: str | None = flag(None, "the picture, .png, or a folder; the numbers lie beside it (samples/ of the run)")


@dataclass(frozen=True)
class CompareFlags(TrainedFlags):
    """Of --mode compare."""

    num_samples: int = flag(100, "how many")
    output: str | None = flag(None, "the picture to write, .png, or a folder (samples/ of the run)")


@dataclass(frozen=True)
class CalibrateFlags(TrainedFlags):
    """Of --mode calibrate."""

    num_samples: int = flag(640, "noises to learn from")
    num_steps: int | None = flag(None, "evaluations of the table (5, 6, 8 and 10)")


@dataclass(frozen=True)
class EvaluateFlags(TrainedFlags):
    """Of --mode evaluate."""

    metric: str = flag("all", "{metrics}, several between commas, or all: the usual ones that suit the data")
    input: str | None = flag(None, "a file or folder of samples (the run's held-out ones)")
    reference: str | None = flag(
        None, "real samples to compare with: held_out, train, a file or a folder; with --input, no model is needed"
    )
    features: str | None = flag(
        None, "what distances compare: {networks}, the file of Inception's weights, a folder of DINOv2"
    )
    over_steps: str | None = flag(None, "distances over numbers of steps, as in 5,10,20: a curve")
    over_checkpoints: int | None = flag(None, "distances over so many checkpoints of the run: a curve")
    num_samples: int | None = flag(None, "how many (all; 1000 are drawn for distances)")
    num_steps: int | None = flag(None, "of the flow of a density (64), or of the sampler if one is named")
    sampler: str | None = flag(None, "of the samples that distances are taken from (auto)")
    dequantization: str = flag("uniform", "of whole numbers: {dequantizations}")
    output: str | None = flag(None, "the file to write, .json, or a folder (samples/ of the run)")


@dataclass(frozen=True)
class InvertFlags(TrainedFlags):
    """Of --mode invert."""

    input: str | None = flag(None, "a file or folder of samples (the run's held-out ones)")
    num_samples: int | None = flag(None, "how many (all)")
    num_steps: int | None = flag(None, "evaluations each way (64)")
    output: str | None = flag(None, "the picture, .png, or a folder; the numbers lie beside it (samples/ of the run)")


@dataclass(frozen=True)
class InterpolateFlags(TrainedFlags):
    """Of --mode interpolate."""

    input: str | None = flag(None, "a file or folder of samples (the run's held-out ones)")
    num_samples: int = flag(8, "pairs of samples")
    num_steps: int | None = flag(None, "evaluations each way (64)")
    output: str | None = flag(None, "the picture, .png, or a folder; the numbers lie beside it (samples/ of the run)")


@dataclass(frozen=True)
class SolveFlags(TrainedFlags):
    """Of --mode solve."""

    task: str | None = flag(None, "what is measured: {tasks}; config.sampling.task has their numbers")
    input: str | None = flag(None, "clean samples that are measured here (the run's held-out ones)")
    measured: str | None = flag(None, "measurements instead: images as they look, or a .npy of the task's numbers")
    operator: str | None = flag(None, "a .npy or picture: the mask of inpaint, the kernel of deblur, the matrix of own")
    method: str = flag("mmps", "{methods}: see docs/inverse.md")
    sampler: str | None = flag(None, "of methods that change the score: {samplers} (sde_dpm_solver)")
    num_samples: int = flag(4, "how many measurements")
    draws: int = flag(16, "samples of each posterior")
    num_steps: int | None = flag(None, "of the sampler (30 for mmps)")
    labels: str | None = flag(None, "classes of measurements, as in 3 or 3,1,4 (those of the samples)")
    prompt: str | None = flag(None, "captions of measurements, as of --mode sample (those of the samples)")
    cases: int = flag(20, "held-out samples that calibration is seen from; 0 for none")
    output: str | None = flag(None, "the picture, .png, or a folder; the numbers lie beside it (samples/ of the run)")


@dataclass(frozen=True)
class EditFlags(TrainedFlags):
    """Of --mode edit."""

    input: str | None = flag(None, "a file or folder of samples to begin from (the run's held-out ones)")
    noise_levels: str = flag("0.5,1,2", "how much is made anew: noise over signal, in units of the model")
    sampler: str = flag("sde_dpm_solver", "{samplers}")
    num_samples: int = flag(4, "how many samples")
    draws: int = flag(1, "edits of each, at each noise level")
    num_steps: int | None = flag(None, "of the sampler (its default)")
    labels: str | None = flag(None, "classes of the edits, as in 3 or 3,1,4 (those of the samples)")
    prompt: str | None = flag(None, "captions of the edits, as of --mode sample (those of the samples)")
    output: str | None = flag(None, "the picture, .png, or a folder; the numbers lie beside it (samples/ of the run)")


@dataclass(frozen=True)
class VisualizeFlags(TrainedFlags):
    """Of --mode visualize."""

    what: str | None = flag(None, "{figures}")
    sde: str | None = flag(None, "without a run: {sdes} (vp)")
    config: str | None = flag(None, "without a run: a recipe, or a .py or .json file")
    sampler: str | None = flag(None, "of the picture, if it has one")
    num_samples: int | None = flag(None, "how many samples or paths are shown")
    num_steps: int | None = flag(None, "of the sampler")
    labels: str | None = flag(None, "the class that is shown")
    prompt: str | None = flag(None, "of attention: what is to be seen (a caption of the run's data)")
    output: str | None = flag(None, "the picture to write: .png, .svg or, of pictures that move, .gif; or a folder")


@dataclass(frozen=True)
class ImportFlags(Flags):
    """Of --mode import."""

    instead: ClassVar[Mapping[str, str]] = {"input": "--from", "checkpoint": "--from", "output": "--workdir"}

    from_: str | None = flag(None, "published weights, also of an autoencoder: a file, a folder, or hf:NAME of a hub")
    as_: str | None = flag(None, "{formats} (as the file looks)")
    sde: str | None = flag(None, "what it was trained under, if the file does not say: vp, subvp, ddpm or flow")
    qkv: str | None = flag(None, "of guided_diffusion: the order of its attention's rows, new or legacy")
    schedule: str | None = flag(None, "of guided_diffusion: its betas, linear or cosine")
    workdir: str | None = flag(None, "folder of the new run (runs/<name of the file>)")


@dataclass(frozen=True)
class ExportFlags(TrainedFlags):
    """Of --mode export."""

    instead: ClassVar[Mapping[str, str]] = {"from": "--workdir or --checkpoint"}

    to: str = flag("torch_export", "{targets}: see docs/networks.md")
    sampler: str | None = flag(None, "a whole sampler as one graph, for onnx and torch_export: {samplers}")
    num_steps: int | None = flag(None, "of the sampler (its default)")
    output: str | None = flag(None, "the file or folder to write (exported/ of the run)")


class Mode(NamedTuple):
    """A mode of the command line.

    Attributes:
        summary: what it does.
        flags: the class of its flags.
        function: where its function is, as in `package.module:function`; it takes flags and overrides.
    """

    summary: str
    flags: type[Flags]
    function: str

    def load(self) -> Callable[[Any, Sequence[str]], int]:
        """The function itself."""
        module, _, name = self.function.partition(":")
        function: Callable[[Any, Sequence[str]], int] = getattr(importlib.import_module(module), name)
        return function


MODES = {
    "train": Mode("trains, or continues a run", TrainFlags, "scoresde.app.train:train"),
    "train_classifier": Mode(
        "trains a classifier of noisy samples, for guidance",
        TrainClassifierFlags,
        "scoresde.app.train_classifier:train_classifier",
    ),
    "train_autoencoder": Mode(
        "trains an autoencoder, whose latents --config.data.autoencoder learns",
        TrainAutoencoderFlags,
        "scoresde.app.train_autoencoder:train_autoencoder",
    ),
    "train_text_encoder": Mode(
        "trains an encoder of captions, for --config.data.text_encoder",
        TrainTextEncoderFlags,
        "scoresde.app.train_text_encoder:train_text_encoder",
    ),
    "sample": Mode("draws samples from a trained model", SampleFlags, "scoresde.app.sample:sample"),
    "compare": Mode(
        "which sampler, and how many steps, for a trained model", CompareFlags, "scoresde.app.compare:compare"
    ),
    "calibrate": Mode(
        "makes --sampler auto better at some number of evaluations", CalibrateFlags, "scoresde.app.calibrate:calibrate"
    ),
    "evaluate": Mode("densities, bits, bounds and distances", EvaluateFlags, "scoresde.app.evaluate:evaluate"),
    "invert": Mode("data to noise along the probability flow, and back", InvertFlags, "scoresde.app.invert:invert"),
    "interpolate": Mode(
        "from one sample to another, through noise", InterpolateFlags, "scoresde.app.invert:interpolate"
    ),
    "solve": Mode("samples of what was measured in part: posteriors", SolveFlags, "scoresde.app.solve:solve"),
    "edit": Mode("changes samples, by noise and denoising", EditFlags, "scoresde.app.edit:edit_samples"),
    "import": Mode(
        "makes a run of published weights; --config.network.FIELD says what a file does not",
        ImportFlags,
        "scoresde.app.import_weights:import_weights",
    ),
    "export": Mode("writes a trained model for other programs", ExportFlags, "scoresde.app.export:export"),
    "visualize": Mode(
        "a picture of a run, or of a known distribution", VisualizeFlags, "scoresde.app.visualize:visualize"
    ),
    "average": Mode(
        "makes a checkpoint with an average of any length, from a run's snapshots",
        AverageFlags,
        "scoresde.app.average:average",
    ),
}


def modes_with(name: str) -> list[str]:
    """The modes that take a flag."""
    return [mode for mode, of in MODES.items() if name in named(of.flags)]

"""From a configuration to objects: the only place where names of the command line become classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from samplers import (
    DDIM,
    DEIS,
    EDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta4,
    Sampler,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    StochasticHeun,
    Trigonometric,
    UniPC,
)
from scoresde import condition
from scoresde._batches import choose_batch_size
from scoresde.autoencoding import AutoencodingObjective
from scoresde.codec import Codec, Scaling
from scoresde.data import ArrayData, ReadOptions, load
from scoresde.data.stores import Watch
from scoresde.errors import UsageError, require, unknown_name
from scoresde.hybrid import HybridObjective
from scoresde.models import ThresholdedModel
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.network import NetworkScoreModel
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.networks import ClassifierNetwork, ContrastiveNetwork, DiT, ImageEncoder, Network, TextTransformer
from scoresde.networks.autoencoder import AutoencoderNetwork
from scoresde.networks.discriminator import discriminator_of
from scoresde.objective import Objective
from scoresde.parametrization import Parametrization
from scoresde.registry import classes, construct
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE
from scoresde.text import Vocabulary
from scoresde.training import TrainingOptions
from scoresde.upsampling import UpsamplingObjective

AUTO = "auto"  # tables fitted to the model that is sampled from: see `samplers.fitted`
PILOT = "pilot"  # a variance that a pilot run measures
SAMPLERS: dict[str, type[Sampler]] = {
    "pc": PredictorCorrector,
    "norm_pc": NormPredictorCorrector,
    "langevin": AnnealedLangevin,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "heun": Heun,
    "edm": EDM,
    "rk4": RungeKutta4,
    "trigonometric": Trigonometric,
    "adams": Adams,
    "deis": DEIS,
    "dpm_solver": DPMSolver,
    "dpm_solver_single": DPMSolverSingle,
    "unipc": UniPC,
    "sde_dpm_solver": SDEDPMSolver,
    "sde_dpm_solver_single": SDEDPMSolverSingle,
    "stochastic_heun": StochasticHeun,
}

SPATIAL = ("UNet", "MPUNet", "DiT", "UNetClassifier")  # networks of (channels, ...) with one to three sizes
VECTORS = ("MLP", "MLPClassifier")
TEXT = "TextTransformer"
FROM_DATA = dict.fromkeys(SPATIAL, ("channels_in", "dims")) | dict.fromkeys(VECTORS, ("dim",)) | {TEXT: ("words",)}


CONDITIONS = {  # the parts of a condition that have a size, with its axis and the argument that it is
    "vector": (1, "vector_channels"),
    "image": (1, "image_channels"),
    "tokens": (2, "context_channels"),
}


def from_data(network: str) -> set[str]:
    """The arguments of a built-in network that the data give, by its name."""
    conditions = {argument for _, argument in CONDITIONS.values()}
    return {"num_classes", "keeps_image", *conditions, *FROM_DATA.get(network, ())}


def sampler_options(cls: type[Sampler]) -> dict[str, Any]:
    """What of a sampler can be configured, with its defaults."""
    assert is_dataclass(cls)
    return {field.name: field.default for field in fields(cls) if field.default is not MISSING}


def build_data(config: ConfigDict, watch: Watch | None = None) -> tuple[ArrayData, ArrayData | None]:
    """Training and held-out data; `watch` is told how far a conversion is."""
    options = {field.name: config.data[field.name] for field in fields(ReadOptions) if field.name in config.data}
    loaded = load(config.data.name, config.data.path, ReadOptions(**options), watch)
    codec = _given_scaling(config)
    if codec is not None:
        codec.encoded_shape(loaded.shape)
        loaded = replace(loaded, codec=codec)
    return loaded.split(config.data.held_out)


def _given_scaling(config: ConfigDict) -> Scaling | None:
    """The scaling of `config.data`, None if it is left to the data."""
    center = tuple(config.data.center)
    scale = tuple(config.data.scale)
    require(bool(center) == bool(scale), f"data.center={center}, data.scale={scale}: give both or none")
    return Scaling(*(part[0] if len(part) == 1 else part for part in (center, scale))) if scale else None


def build_model(config: ConfigDict, train: ArrayData) -> NetworkScoreModel:
    """The model for some data, its weights drawn from the seed; the global random state is left as it was."""
    network = _build_network(config, train, Network, _upsampled(config, train))
    rule = _build_parametrization(config, train)
    sde = construct(config.sde.to_dict(), SDE, "config.sde")
    return NetworkScoreModel(network, sde, rule, train.codec.encoded_shape(train.shape), train.codec)


def build_classifier(config: ConfigDict, train: ArrayData) -> NoisyClassifier:
    """The classifier for some labelled data, which sees x_t and the noise as the score model would."""
    labels = train.labels
    if labels is None:
        found = "no labels" if train.cond is None else condition.describe(train.cond, "labels")
        hidden = "; config.data.class_conditional=False leaves them out" if not config.data.class_conditional else ""
        raise UsageError(f"data: {found}; a classifier needs a class for each sample, a whole number{hidden}")
    known = labels.unique().tolist()
    only = train.class_names[known[0]] if train.class_names else known[0]
    require(len(known) > 1, f"data: all samples are of class {only}; a classifier tells at least two apart")
    network = _build_network(config, train, ClassifierNetwork)
    rule = _build_parametrization(config, train)
    sde = construct(config.sde.to_dict(), SDE, "config.sde")
    shape = train.codec.encoded_shape(train.shape)
    return NoisyClassifier(network, sde, shape, train.num_classes, rule.sigma_data, rule.input, train.codec)


def build_autoencoder(config: ConfigDict, train: ArrayData) -> Autoencoder:
    """The autoencoder for some data; not sharded, as its halves are used apart and a codebook changes in a step."""
    require(not config.training.shard, "training.shard=True: autoencoders are not sharded; set it to False")
    network: dict[str, Any] = config.network.to_dict()
    shape = train.codec.encoded_shape(train.shape)
    cls = classes(AutoencoderNetwork).get(network["name"])
    taken = {} if cls is None else signature(cls).parameters
    given = {"channels_in": shape[0], "dims": len(shape) - 1}
    network |= {name: value for name, value in given.items() if name in taken}
    built: AutoencoderNetwork = _drawn(network, AutoencoderNetwork, config.seed)
    built.latent_shape(shape)  # a mistake is answered before a run folder is made
    objective = build_objective(config)
    adversarial = isinstance(objective, AutoencodingObjective) and objective.adversarial_weight > 0
    with _seeded(config.seed):
        discriminator = discriminator_of(shape) if adversarial else None
    return Autoencoder(built, shape, train.codec, discriminator)


def build_text_encoder(config: ConfigDict, train: ArrayData) -> ContrastiveTextModel:
    """The text encoder for the captions of some data, beside an image encoder for their samples."""
    shape = train.codec.encoded_shape(train.shape)
    require(
        2 <= len(shape) <= 4,
        f"data of shape {shape}: a text encoder is trained with series, images or volumes, (channels, sizes)",
    )
    words = build_vocabulary(train).words
    text: TextTransformer = _drawn(config.network.to_dict() | {"words": words}, TextTransformer, config.seed)
    with _seeded(config.seed):
        network = ContrastiveNetwork(text, ImageEncoder(shape[0], dims=len(shape) - 1))
    return ContrastiveTextModel(network, shape, train.codec)


def build_vocabulary(train: ArrayData) -> Vocabulary:
    """The words of the captions of the samples that are trained on."""
    numbers = train.cond["text"] if isinstance(train.cond, Mapping) and train.texts else None
    if not isinstance(numbers, Tensor):
        raise UsageError(
            "data: no captions; a text encoder learns captions, such as those of --config.data.name=digits_text"
        )
    return Vocabulary.of(train.texts[number] for number in numbers.unique().tolist())


def _upsampled(config: ConfigDict, train: ArrayData) -> dict[str, Any]:
    """The arguments of a network that takes the low resolution of samples, which an upsampler's objective makes."""
    objective = build_objective(config)
    if not isinstance(objective, UpsamplingObjective):
        return {}
    shape = train.codec.encoded_shape(train.shape)
    objective.low_shape(shape)  # a mistake is answered before a run folder is made
    name = config.network.name
    require(
        name not in VECTORS,
        f"network.name={name!r}: takes no images, and config.objective makes an upsampler; use UNet, MPUNet or DiT",
    )
    parts = train.cond if isinstance(train.cond, Mapping) else {}
    require("image" not in parts, "data: have images as conditions; an upsampler makes its own, so leave them out")
    return {"image_channels": shape[0], "keeps_image": True}


def _build_network(
    config: ConfigDict, train: ArrayData, kind: type[nn.Module], more: Mapping[str, Any] = MappingProxyType({})
) -> nn.Module:
    """The network for some data."""
    network: dict[str, Any] = config.network.to_dict()
    shape = train.codec.encoded_shape(train.shape)
    network |= dict(zip(FROM_DATA.get(network["name"], ()), _sizes(network["name"], shape, kind), strict=False))
    network |= _condition_sizes(network["name"], train) | dict(more)
    built: nn.Module = _drawn(network, kind, config.seed)
    if isinstance(built, DiT):
        built.grid(shape[1:])  # a mistake is answered before a run folder is made
    return built


def _drawn(description: dict[str, Any], kind: type[nn.Module], seed: int) -> Any:
    """The network of a description, its weights drawn from the seed; the global random state is left as it was."""
    require(0 <= seed < 2**64, f"seed={seed}: need 0 <= seed < 2**64")
    with _seeded(seed):
        return construct(description, kind, "config.network")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """While entered, weights are drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _condition_sizes(name: str, train: ArrayData) -> dict[str, int]:
    """What the conditions of the data give to a network: the number of classes, and the sizes of the other parts.

    Raises:
        UsageError: for a part that the network does not take.
    """
    cond = train.conditions(slice(1))
    if isinstance(cond, Tensor) and train.labels is None:
        cond = {"vector": cond}
    found = {"num_classes": train.num_classes}
    cls = classes(nn.Module).get(name)
    for kind, (axis, argument) in CONDITIONS.items():
        part = cond.get(kind) if isinstance(cond, Mapping) else None
        if not isinstance(part, Tensor) or part.ndim <= axis:
            continue
        require(
            cls is None or argument in signature(cls).parameters,
            f"network.name={name!r}: takes no {kind!r}, and the condition of the data is {condition.describe(cond)}",
        )
        found[argument] = part.shape[axis]
    return found


def _sizes(name: str, shape: tuple[int, ...], kind: type[nn.Module]) -> tuple[int, ...]:
    """What the data give to a built-in network: the channels and the number of axes behind them, or the columns.

    Raises:
        UsageError: for data of a shape that it does not take.
    """
    suffix = "Classifier" if kind is ClassifierNetwork else ""
    fits = {1: f"use --config.network.name=MLP{suffix} or --config toy"}
    fits |= dict.fromkeys((2, 3, 4), f"use --config.network.name=UNet{suffix}")
    expected = "vectors" if name in VECTORS else "samples (channels, ...), series, images or volumes"
    own = "no built-in network takes it; reshape the data, or write a network (docs/extending.md)"
    require(
        name not in VECTORS + SPATIAL or (len(shape) == 1 if name in VECTORS else 2 <= len(shape) <= 4),
        f"network.name={name!r}: needs {expected}, and the data has shape {shape}; {fits.get(len(shape), own)}",
    )
    return shape[0], len(shape) - 1


def _build_parametrization(config: ConfigDict, train: ArrayData) -> Parametrization:
    """What a network sees and emits; the scale of the data is measured unless it is given."""
    described: dict[str, Any] = config.parametrization.to_dict()
    described["sigma_data"] = described["sigma_data"] or train.rms()
    rule: Parametrization = construct(described, Parametrization, "config.parametrization")
    return rule


def build_objective(config: ConfigDict) -> Objective:
    """The objective; discrete times and learned variances take the chain's number of levels.

    Times and weighting, which the default names, are left out for an objective that takes none. An upsampler's are
    those of the objective inside it.
    """
    described = _with_levels(config.objective.to_dict(), config)
    objective: Objective = construct(described, Objective, "config.objective")
    return objective


def _with_levels(described: dict[str, Any], config: ConfigDict) -> dict[str, Any]:
    """The description of an objective with the numbers of levels, and without what it does not take."""
    cls = classes(Objective).get(described["name"])
    taken = ("times", "weighting") if cls is None else signature(cls).parameters
    described = {key: value for key, value in described.items() if key in taken or key not in ("times", "weighting")}
    if isinstance(described.get("objective"), dict):
        return described | {"objective": _with_levels({"name": None, **described["objective"]}, config)}
    times = described.get("times")
    if isinstance(times, dict) and times.get("name") == "DiscreteTimes" and "num_levels" in config.sde:
        times.setdefault("num_levels", config.sde.num_levels)
        if cls is HybridObjective:
            described.setdefault("num_steps", config.sde.num_levels)
    return described


def build_options(config: ConfigDict) -> TrainingOptions:
    """How to optimise."""
    return TrainingOptions(**config.training)


def build_batch_size(config: ConfigDict, shape: tuple[int, ...], device: torch.device, graphs: int = 0) -> int:
    """The samples at a time that `config.sampling` asks for, or else that a step of the run's training leaves room for.

    Args:
        config: of the run.
        shape: shape of a sample, in the model's units.
        device: where to compute.
        graphs: evaluations of the model through which is differentiated at a time.
    """
    given = config.sampling.batch_size
    require(given >= 0, f"config.sampling.batch_size={given}: need at least 1, or 0 for what training leaves room for")
    training = config.get("training", {})
    size, accumulate = (training.get(name) for name in ("batch_size", "accumulate"))  # an older run may lack them
    known = isinstance(size, int) and isinstance(accumulate, int) and size >= accumulate >= 1
    return choose_batch_size(given or None, shape, device, trained=size // accumulate if known else None, graphs=graphs)


def threshold(config: ConfigDict, model: ScoreModel, codec: Codec, low: float, high: float) -> ScoreModel:
    """A model thresholded as the configuration says.

    Args:
        config: its `sampling` part is read.
        model: the model, guided as it is to be, on the device of sampling.
        codec: of the data.
        low, high: the range of the data, in raw units.
    """
    kind = config.sampling.threshold
    quantile = config.sampling.quantile
    require(
        kind in ("none", "static", "dynamic"),
        f"config.sampling.threshold={kind!r}: need 'none', 'static' or 'dynamic'",
    )
    if kind == "none":
        return model
    require(
        isinstance(codec, Scaling),
        f"config.sampling.threshold={kind!r}: the range of data is known, not that of latents; set it to 'none'",
    )
    ends = torch.stack([torch.full(model.shape, low), torch.full(model.shape, high)])
    smallest, largest = codec.encode(ends, model.dtype)
    return ThresholdedModel(model, smallest, largest, quantile if kind == "dynamic" else None)


def build_sampler(config: ConfigDict, name: str, num_steps: int | None) -> Sampler:
    """A sampler by its name on the command line. "ode" with a number of steps is Heun's method with that many.

    An snr of 0, and a variance "pilot", are the sampler's own: `scoresde.app.piloted` puts in what a pilot run finds.
    """
    require(name != AUTO, f"sampler={AUTO!r}: is fitted to a run by --mode sample; name another here, such as heun")
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, [*SAMPLERS, AUTO])
    if name == "ode" and num_steps is not None:
        return Heun()
    options = dict(config.sampling.get(name, {}))
    if options.get("snr") == 0:
        del options["snr"]
    if options.get("variance") == PILOT:
        del options["variance"]
    try:
        return SAMPLERS[name](**options)
    except TypeError as error:
        raise UsageError(f"config.sampling.{name}: {error}") from error

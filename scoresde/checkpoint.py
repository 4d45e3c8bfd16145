r"""Checkpoints: one safetensors file that describes itself.

Beside the tensors (weights, averaged weights, optimiser) the file's header holds a JSON text. It describes each model
by the names of its classes and their arguments (`scoresde.registry`), and holds the step, a description of the data,
and the run's configuration. Reading a file parses JSON and copies numbers: no code runs, and nothing is guessed.

A file can hold several models by name; the tensors of model `score` are `weights.score.*` and `ema.score.*`.
`save_model` and `load_model` read and write models without a run: such a file has no data and no configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from scoresde._files import write_bytes
from scoresde._json import parse_json
from scoresde.codec import Codec
from scoresde.descriptions import (
    AUTOENCODER,
    CLASSIFIER,
    KINDS,
    LATENT,
    SCORE,
    TEXT_ENCODER,
    build_model,
    check_described,
    describe_model,
    kind_of,
    model_state,
)
from scoresde.errors import UsageError, require
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.base import TrainedModel
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.models.network import NetworkScoreModel
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.registry import construct

FORMAT = "scoresde checkpoint 2"
EARLIER_FORMAT = "scoresde checkpoint 1"
CALLED = {
    SCORE: "a score model",
    CLASSIFIER: "a classifier",
    AUTOENCODER: "an autoencoder",
    TEXT_ENCODER: "a text encoder",
}
LOADED_BY = {
    SCORE: "load_model",
    CLASSIFIER: "load_classifier",
    AUTOENCODER: "load_autoencoder",
    TEXT_ENCODER: "text.open_text_encoder",
}
T = TypeVar("T", bound=TrainedModel)


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        step: steps of training.
        digest: a checksum of everything in the file.
        description: the header: models, data and configuration.
        tensors: by name, on the host: "weights.*", "ema.*", "optimizer.*" and the rest of the trainer's state.
        path: of the file.
    """

    step: int
    digest: str
    description: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path

    def model(
        self,
        weights: str = "ema",
        name: str = SCORE,
        network: nn.Module | None = None,
        autoencoder: Path | str | None = None,
    ) -> NetworkScoreModel:
        """A score model, ready to sample from.

        Args:
            weights: "ema" for the averaged weights, "weights" for the last ones.
            name: which of the file's models.
            network: the network to load the weights into; needed if its class is not registered.
            autoencoder: as of `codec`.

        Raises:
            UsageError: for a name that the file does not hold, a model of another kind, or tensors that do not fit
                their description.
        """
        return self._of_kind(NetworkScoreModel, weights, name, network, autoencoder)

    def classifier(
        self,
        weights: str = "ema",
        name: str = CLASSIFIER,
        network: nn.Module | None = None,
        autoencoder: Path | str | None = None,
    ) -> NoisyClassifier:
        """A classifier, ready to guide; arguments and errors are those of `model`."""
        return self._of_kind(NoisyClassifier, weights, name, network, autoencoder)

    def autoencoder(self, weights: str = "ema", name: str = AUTOENCODER) -> Autoencoder:
        """An autoencoder; arguments and errors are those of `model`."""
        return self._of_kind(Autoencoder, weights, name, None, None)

    def text_encoder(self, weights: str = "ema", name: str = TEXT_ENCODER) -> ContrastiveTextModel:
        """A text encoder, with what it was trained beside; arguments and errors are those of `model`."""
        return self._of_kind(ContrastiveTextModel, weights, name, None, None)

    def _of_kind(
        self, kind: type[T], weights: str, name: str, network: nn.Module | None, autoencoder: Path | str | None
    ) -> T:
        """A model with its weights, of the kind that is wanted."""
        models = self.description["models"]
        source = f"{str(self.path)!r}"
        require(
            weights in ("ema", "weights"),
            f"weights={weights!r}: need 'ema', the averaged weights, or 'weights', the last ones",
        )
        require(name in models, f"model={name!r}: {source} holds the models {', '.join(models)}")
        path = f"models.{name}"
        check_described(models[name], path)
        found = kind_of(models[name])
        require(
            KINDS[found] is kind,
            f"model={name!r} of {source} is {CALLED[found]}, not {CALLED[kind.role]}; load it with {LOADED_BY[found]}",
        )
        model = build_model(models[name], path, source, network, self.codec(name, autoencoder))
        assert isinstance(model, kind)
        prefix = f"{weights}.{name}."
        state = {key.removeprefix(prefix): v.clone() for key, v in self.tensors.items() if key.startswith(prefix)}
        try:
            for key, tensor in model.state_dict(keep_vars=True).items():
                tensor.data = tensor.data.to(state.get(key, tensor).dtype)
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UsageError(f"checkpoint: its tensors do not fit the model that it describes ({first})") from error
        return model.eval().requires_grad_(False)

    def codec(self, name: str, autoencoder: Path | str | None = None) -> Codec:
        """The codec of a model; of a latent model, its autoencoder is read from the file that is named, or given.

        Args:
            name: which of the file's models.
            autoencoder: another autoencoder, or the place to which that of the model moved.

        Raises:
            UsageError: for an autoencoder that is missing, or has changed.
        """
        return _codec(self.description["models"][name]["codec"], f"models.{name}.codec", self.path, autoencoder)


def _codec(described: Mapping[str, Any], path: str, file: Path, autoencoder: Path | str | None) -> Codec:
    if described.get("name") != LATENT:
        require(
            autoencoder is None,
            f"autoencoder={str(autoencoder)!r}: the model of {str(file)!r} works on the data themselves, without an "
            "autoencoder; leave it out",
        )
        codec: Codec = construct(described, Codec, path)
        return codec
    if autoencoder is not None:
        return load_autoencoder(autoencoder)
    named, digest = (described.get(part) for part in ("path", "digest"))
    require(isinstance(named, str) and isinstance(digest, str), f"{path}: this description of a codec is damaged")
    found = next((place for place in places(str(named), file) if place.is_file()), None)
    remedy = "give its place by --autoencoder FILE (in Python autoencoder=FILE)"
    if found is None:
        raise UsageError(
            f"checkpoint={str(file)!r}: its autoencoder {digest} was at {named!r} and is not there; {remedy}"
        )
    loaded = load_autoencoder(found)
    require(
        loaded.digest == digest,
        f"checkpoint={str(file)!r}: its autoencoder was {digest}, and {str(found)!r} is now {loaded.digest}; {remedy}, "
        "or another one in full knowledge",
    )
    return loaded


def places(named: str, file: Path) -> Iterator[Path]:
    """Where a file may lie that another one names: below the folder of this process, or a folder above the other."""
    yield Path(named)
    for folder in file.absolute().parents:
        yield folder / named


def save(path: Path, step: int, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that `path` never holds half a file."""
    from safetensors.torch import save as to_bytes

    tensors = _apart({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    header = {**description, "format": FORMAT, "step": step}
    header["digest"] = digest(tensors, header)
    content = to_bytes(tensors, {"scoresde": json.dumps(header)})
    write_bytes(path, content)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those that share memory (such as tied weights), which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in seen else value
        seen.add(place)
    return result


@final
class Checksum:
    """A checksum of tensors, names, shapes, types and bytes; a tensor can come in parts along its first axis."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def begin(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Says which tensor comes next. Names come in sorted order."""
        self._state.update(f"{name} {shape} {dtype}".encode())

    def add(self, part: Tensor) -> None:
        """Takes the next part of the tensor."""
        self._state.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes whole tensors, in the order of their names."""
        for name in sorted(tensors):
            self.begin(name, tuple(tensors[name].shape), tensors[name].dtype)
            self.add(tensors[name])

    def end(self, header: Mapping[str, Any] | None = None) -> str:
        """The checksum, with that of a header without its own digest."""
        if header is not None:
            fields = {key: value for key, value in header.items() if key != "digest"}
            self._state.update(json.dumps(fields, sort_keys=True).encode())
        return self._state.hexdigest()


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> str:
    """A checksum of tensors (names, shapes, types and bytes) and of a header without its own digest."""
    state = Checksum()
    state.take(tensors)
    return state.end(header)


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        UsageError: for a file that is missing, truncated, of an earlier format, or not a checkpoint of this library.
        OSError: for a file that cannot be opened, for example without permission; the file itself may be intact.
    """
    path = Path(path)
    header, tensors = _read(path)
    require(
        header["digest"] == digest(tensors, header),
        f"checkpoint={str(path)!r}: damaged, its checksum does not fit; use an earlier one",
    )
    return Checkpoint(header["step"], header["digest"], header, tensors, path)


def read_header(path: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself: step, digest, models, and what belongs to its run. The tensors are not read.

    Raises:
        UsageError: as `load` does, but tensors that are damaged go unnoticed.
    """
    return _read(Path(path), with_tensors=False)[0]


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, whose checksum is not checked."""
    from safetensors import SafetensorError, safe_open

    source = f"checkpoint={str(path)!r}"
    require(path.is_file(), f"{source}: no such file; give a file of a run's checkpoints/ folder")
    with open(path, "rb"):  # safetensors reports a file without read permission as missing
        pass
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("scoresde")
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{source}: damaged or not a safetensors file ({error})") from error
    foreign = UsageError(f"{source}: not a checkpoint of this library; its header lacks {FORMAT!r}")
    try:
        header = parse_json(text or "null")
    except ValueError as error:
        raise foreign from error
    if isinstance(header, dict) and header.get("format") == EARLIER_FORMAT:
        raise UsageError(
            f"{source}: was written by scoresde 0.1, in an earlier format; train it again with the same command in "
            "another --workdir, or use scoresde 0.1 for it"
        )
    needed = {"format", "step", "digest", "models"}
    if not isinstance(header, dict) or header.get("format") != FORMAT or not needed <= header.keys():
        raise foreign
    for field, kind in {"step": int, "models": dict, "data": dict, "config": dict}.items():
        value = header.get(field, {})
        require(isinstance(value, kind), f"{source}: {field}={value!r} in its header is damaged")
    return header, tensors


def named_models(models: Mapping[str, Any]) -> str:
    """What described models are, in words: "a score model", or "a classifier and an autoencoder"."""
    return " and ".join(CALLED.get(kind_of(model), name) for name, model in models.items())


def models_in(path: Path | str) -> dict[str, str]:
    """The models that a file holds: by name, what each is, such as "score" or "classifier"; nothing is loaded.

    Raises:
        UsageError: for a file that cannot be read.
    """
    return {name: kind_of(description) for name, description in read_header(path)["models"].items()}


def save_model(model: TrainedModel, path: Path | str) -> None:
    """Writes a model to a file, to be read by `load_model` or `load_classifier`; see `save_models`."""
    save_models({model.role if isinstance(model, TrainedModel) else SCORE: model}, path)


def save_models(models: Mapping[str, TrainedModel], path: Path | str) -> None:
    """Writes models to one file, by name.

    For a network whose class is not registered, the file holds the weights only, and `load_model` needs the network.

    Raises:
        UsageError: for a model that could not be loaded again, or a missing folder.
    """
    path = Path(path)
    require(len(models) > 0, "models: there are none to save")
    require(path.parent.is_dir(), f"path={str(path)!r}: its folder does not exist; make it first")
    descriptions: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, model in models.items():
        require(bool(name) and "." not in name, f"name={name!r} of a model: need a name without dots")
        require(
            isinstance(model, TrainedModel),
            f"model of {type(model).__name__}: only a NetworkScoreModel has weights to save, and a NoisyClassifier; "
            "save the one inside it",
        )
        descriptions[name] = describe_model(model)
        tensors |= {f"ema.{name}.{key}": value for key, value in model_state(model).items()}
    save(path, 0, {"models": descriptions}, tensors)


def load_model(
    path: Path | str,
    device: torch.device | str = "cpu",
    network: nn.Module | None = None,
    name: str = SCORE,
    autoencoder: Path | str | None = None,
) -> NetworkScoreModel:
    """Loads a model from a file of `save_model`, or from a run's checkpoint (its averaged weights), to sample from.

    No code in the file is run.

    Args:
        path: the file.
        device: the model's device.
        network: the network to load the weights into; needed if its class is not registered.
        name: which of the file's models.
        autoencoder: of a latent model, another autoencoder than that which the file names, or its new place.

    Raises:
        UsageError: for a file that cannot be read, or a network that does not fit it.
    """
    return load(path).model("ema", name, network, autoencoder).to(device)


def load_classifier(
    path: Path | str, device: torch.device | str = "cpu", network: nn.Module | None = None, name: str = CLASSIFIER
) -> NoisyClassifier:
    """Loads a classifier from a file of `save_model`, or from a run's checkpoint; as `load_model` does."""
    return load(path).classifier("ema", name, network).to(device)


def load_autoencoder(path: Path | str, device: torch.device | str = "cpu", name: str = AUTOENCODER) -> AutoencoderCodec:
    """Loads an autoencoder from a file of `save_model`, or from a run's checkpoint, as the codec of latent models."""
    found = load(path)
    objective = found.description.get("config", {}).get("objective", {})
    error = str(objective.get("error", "l1")) if isinstance(objective, Mapping) else "l1"
    return AutoencoderCodec(found.autoencoder("ema", name).to(device), str(path), found.digest, error)

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from scoresde._files import write_bytes
from scoresde._json import parse_json
from scoresde.codec import Codec
from scoresde.errors import UsageError, require
from scoresde.models.base import NetworkModel, plain_network
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.network import NetworkScoreModel
from scoresde.parametrization import Input, Parametrization
from scoresde.registry import construct, describe, is_registered
from scoresde.sde import SDE

FORMAT = "scoresde checkpoint 2"
EARLIER_FORMAT = "scoresde checkpoint 1"
SCORE = NetworkScoreModel.role  # the model that a run trains
CLASSIFIER = NoisyClassifier.role  # or this one


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

    def model(self, weights: str = "ema", name: str = SCORE, network: nn.Module | None = None) -> NetworkScoreModel:
        """A score model, ready to sample from.

        Args:
            weights: "ema" for the averaged weights, "weights" for the last ones.
            name: which of the file's models.
            network: the network to load the weights into; needed if its class is not registered.

        Raises:
            UsageError: for a name that the file does not hold, a classifier, or tensors that do not fit their
                description.
        """
        model = self._loaded(weights, name, network)
        if not isinstance(model, NetworkScoreModel):
            raise UsageError(f"{self._said(name)} is a classifier, not a score model; load it with load_classifier")
        return model

    def classifier(
        self, weights: str = "ema", name: str = CLASSIFIER, network: nn.Module | None = None
    ) -> NoisyClassifier:
        """A classifier, ready to guide; arguments and errors are those of `model`."""
        model = self._loaded(weights, name, network)
        if not isinstance(model, NoisyClassifier):
            raise UsageError(f"{self._said(name)} is a score model, not a classifier; load it with load_model")
        return model

    def _said(self, name: str) -> str:
        return f"model={name!r} of {str(self.path)!r}"

    def _loaded(self, weights: str, name: str, network: nn.Module | None) -> NetworkModel:
        """A model of either kind, with its weights."""
        models = self.description["models"]
        require(
            weights in ("ema", "weights"),
            f"weights={weights!r}: need 'ema', the averaged weights, or 'weights', the last ones",
        )
        require(name in models, f"model={name!r}: {str(self.path)!r} holds the models {', '.join(models)}")
        model = self._build(models[name], f"models.{name}", network)
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

    def _build(self, description: Any, path: str, network: nn.Module | None) -> NetworkModel:
        """Builds a described model, with fresh weights or around a given network."""
        check_described(description, path)
        if network is None:
            name = description["network"].get("name")
            require(
                description["network"].get("registered", True),
                f"network: {str(self.path)!r} holds the weights of {name}, a class that was not registered when it "
                f"was saved; give network={name}()",
            )
            with torch.random.fork_rng(devices=[]):
                network = construct(description["network"], nn.Module, f"{path}.network")
        sde = construct(description["sde"], SDE, f"{path}.sde")
        codec = construct(description["codec"], Codec, f"{path}.codec")
        shape = tuple(description["shape"])
        if kind_of(description) == CLASSIFIER:
            rule = construct(description["input"], Input, f"{path}.input")
            num_classes, sigma_data = description["num_classes"], description["sigma_data"]
            return NoisyClassifier(network, sde, shape, num_classes, sigma_data, rule, codec)
        rule = construct(description["parametrization"], Parametrization, f"{path}.parametrization")
        return NetworkScoreModel(network, sde, rule, shape, codec)


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


def models_in(path: Path | str) -> dict[str, str]:
    """The models that a file holds: by name, whether each is a "score" model or a "classifier"; nothing is loaded.

    Raises:
        UsageError: for a file that cannot be read.
    """
    return {name: kind_of(description) for name, description in read_header(path)["models"].items()}


def kind_of(description: Any) -> str:
    """Whether a description is of a "score" model or a "classifier"; files of earlier versions know only the first."""
    return str(description.get("kind", SCORE)) if isinstance(description, Mapping) else SCORE


def save_model(model: NetworkModel, path: Path | str) -> None:
    """Writes a model to a file, to be read by `load_model` or `load_classifier`; see `save_models`."""
    save_models({model.role if isinstance(model, NetworkModel) else SCORE: model}, path)


def save_models(models: Mapping[str, NetworkModel], path: Path | str) -> None:
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
            isinstance(model, NetworkModel),
            f"model of {type(model).__name__}: only a NetworkScoreModel has weights to save, and a NoisyClassifier; "
            "save the one inside it",
        )
        descriptions[name] = describe_model(model)
        tensors |= {f"ema.{name}.{key}": value for key, value in model_state(model).items()}
    save(path, 0, {"models": descriptions}, tensors)


def load_model(
    path: Path | str, device: torch.device | str = "cpu", network: nn.Module | None = None, name: str = SCORE
) -> NetworkScoreModel:
    """Loads a model from a file of `save_model`, or from a run's checkpoint (its averaged weights), to sample from.

    No code in the file is run.

    Args:
        path: the file.
        device: the model's device.
        network: the network to load the weights into; needed if its class is not registered.
        name: which of the file's models.

    Raises:
        UsageError: for a file that cannot be read, or a network that does not fit it.
    """
    return load(path).model("ema", name, network).to(device)


def load_classifier(
    path: Path | str, device: torch.device | str = "cpu", network: nn.Module | None = None, name: str = CLASSIFIER
) -> NoisyClassifier:
    """Loads a classifier from a file of `save_model`, or from a run's checkpoint; as `load_model` does."""
    return load(path).classifier("ema", name, network).to(device)


def check_described(description: Any, path: str) -> None:
    """Raises `UsageError` for a description of a model that lacks a part; the message begins with `path`."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "network": Mapping,
        "sde": Mapping,
        "codec": Mapping,
        "shape": Sequence,
    }
    role = kind_of(description)
    require(role in (SCORE, CLASSIFIER), f"{path}.kind={role!r}: need {SCORE!r} or {CLASSIFIER!r}")
    if role == CLASSIFIER:
        kinds |= {"input": Mapping, "num_classes": int, "sigma_data": (int, float)}
    else:
        kinds |= {"parametrization": Mapping}
    for part, kind in kinds.items():
        value = description.get(part) if isinstance(description, Mapping) else None
        require(isinstance(value, kind), f"{path}.{part}={value!r}: this description of a model is damaged")


def describe_model(model: NetworkModel) -> dict[str, Any]:
    """The description of a model, without its weights.

    Raises:
        UsageError: for a part that cannot be described, or weights that belong to no part.
    """
    network = plain_network(model.network)
    parts = {"network": network, "sde": model.sde, "codec": model.codec}
    known = {f"{part}.{key}" for part, of in parts.items() if isinstance(of, nn.Module) for key in of.state_dict()}
    extra = sorted(set(model_state(model)) - known)
    require(
        not extra,
        f"model: holds {extra[0] if extra else ''}, which is not a part of its network, SDE or codec; a file describes "
        "only these, and could not be loaded",
    )
    registered = is_registered(type(network))
    description = {
        "network": describe(network) if registered else {"name": type(network).__name__, "registered": False},
        "sde": describe(model.sde),
        "shape": list(model.shape),
        "codec": describe(model.codec),
    }
    if isinstance(model, NetworkScoreModel):
        return description | {"parametrization": describe(model.parametrization)}
    assert isinstance(model, NoisyClassifier)
    return description | {
        "kind": CLASSIFIER,
        "input": describe(model.input),
        "sigma_data": model.sigma_data,
        "num_classes": model.num_classes,
    }


def model_state(model: NetworkModel) -> dict[str, Tensor]:
    """The tensors of a model by name, without the names that `torch.compile` adds."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("network.")}
    return state | {f"network.{name}": v for name, v in plain_network(model.network).state_dict().items()}

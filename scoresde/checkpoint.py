r"""Checkpoints: one safetensors file that describes itself.

The tensors (weights, averaged weights, optimiser) lie beside a JSON text in the file's header, which names the classes
of the model and their arguments, the step, the scaling of the data, and the run's configuration. Reading a file parses
JSON and copies numbers: no code runs, and nothing has to be guessed. `CLASSES` is the one map from names to classes.

`save_model` and `load_model` do the same for a model alone, without a run: such a file has no data and configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from scoresde import learned_sde, named_sdes, networks, objective, parametrization
from scoresde._json import parse_json
from scoresde.errors import UsageError, require, unknown_name
from scoresde.score_model import NetworkScoreModel
from scoresde.sde import SDE

FORMAT = "scoresde checkpoint 1"

CLASSES: Mapping[str, type] = types.MappingProxyType(
    {
        cls.__name__: cls
        for cls in (
            named_sdes.VPSDE,
            named_sdes.SubVPSDE,
            named_sdes.VESDE,
            named_sdes.CosineSDE,
            named_sdes.EDMSDE,
            named_sdes.RectifiedFlowSDE,
            named_sdes.DiscreteVPSDE,
            learned_sde.LearnedVPSDE,
            parametrization.NoiseParametrization,
            parametrization.DenoisedParametrization,
            parametrization.ScoreParametrization,
            parametrization.VelocityParametrization,
            parametrization.EDMParametrization,
            objective.UniformTimes,
            objective.DiscreteTimes,
            objective.LadderTimes,
            objective.LogNormalNoiseLevels,
            objective.NoiseWeighting,
            objective.DenoisedWeighting,
            objective.VelocityWeighting,
            objective.EDMWeighting,
            objective.MinSNRWeighting,
            objective.LikelihoodWeighting,
            objective.FlowWeighting,
            networks.MLP,
            networks.UNet,
        )
    }
)


def classes(kind: type) -> dict[str, type]:
    """The `CLASSES` of a kind. An SDE with weights is a module, and no network."""
    return {
        n: cls for n, cls in CLASSES.items() if issubclass(cls, kind) and issubclass(cls, SDE) <= issubclass(kind, SDE)
    }


def describe(thing: Any) -> dict[str, Any]:
    """The class and the arguments of an object of one of the `CLASSES`, as JSON can hold them."""
    name = type(thing).__name__
    require(
        CLASSES.get(name) is type(thing),
        f"{name}: cannot be described in a checkpoint, which names only built-in classes; save its weights yourself",
    )
    if isinstance(thing, nn.Module):
        return {"name": name, **thing.arguments}  # type: ignore[dict-item]
    return {"name": name} | {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}


def construct(description: Mapping[str, Any], kind: type, path: str) -> Any:
    """The object of a description; it must be of class `kind`. `path` says where the description stands, for errors."""
    arguments = dict(description)
    name = arguments.pop("name", None)
    known = classes(kind)
    if str(name) not in known:
        raise unknown_name(f"{path}.name", str(name), known)
    cls = known[str(name)]
    parameters = inspect.signature(cls).parameters
    for key, value in arguments.items():
        if key not in parameters:
            raise unknown_name(f"argument of {name} in {path}:", key, list(parameters))
        if isinstance(value, list):
            arguments[key] = value = tuple(value)
        default = parameters[key].default
        kinds = (float, int) if isinstance(default, float) else (type(default),)
        require(
            default is inspect.Parameter.empty or type(value) in kinds,
            f"{path}.{key}={value!r}: need a value like {default!r}",
        )
    try:
        return cls(**arguments)
    except (TypeError, RuntimeError) as error:
        raise UsageError(f"{path}: {name} cannot be made of {arguments} ({error})") from error


@final
@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        step: steps of training.
        description: model, data and configuration, as in the header.
        tensors: by name, on the host: "weights.*", "ema.*", "optimizer.*".
        path: of the file.
    """

    step: int
    description: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path

    def model(self, weights: str = "ema") -> NetworkScoreModel:
        """The model, ready to sample from, with the averaged weights ("ema") or the last ones ("weights").

        Raises:
            UsageError: for a description that makes no model, or tensors that do not fit it.
        """
        return self._fill(build_model(self.description["model"]), weights)

    def _fill(self, model: NetworkScoreModel, weights: str) -> NetworkScoreModel:
        require(
            weights in ("ema", "weights"),
            f"weights={weights!r}: need 'ema', the averaged weights, or 'weights', the last ones",
        )
        prefix = f"{weights}."
        state = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UsageError(f"checkpoint: its tensors do not fit the model that it describes ({first})") from error
        return model.eval().requires_grad_(False)


def describe_model(model: NetworkScoreModel) -> dict[str, Any]:
    """A model without its weights."""
    parts = {part: describe(getattr(model, part)) for part in ("network", "sde", "parametrization")}
    return {**parts, "shape": list(model.shape)}


def build_model(description: Mapping[str, Any], network: nn.Module | None = None) -> NetworkScoreModel:
    """A model of a description, with fresh weights, or around a network that is given."""
    for part, kind in {"network": Mapping, "sde": Mapping, "parametrization": Mapping, "shape": Sequence}.items():
        value = description.get(part)
        require(isinstance(value, kind), f"model.{part}={value!r}: this description of a model is damaged")
    return NetworkScoreModel(
        network if network is not None else construct(description["network"], nn.Module, "model.network"),
        construct(description["sde"], SDE, "model.sde"),
        construct(description["parametrization"], parametrization.Parametrization, "model.parametrization"),
        tuple(description["shape"]),
    )


def save(path: Path, step: int, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint: whole under a temporary name, then renamed, so that `path` never holds half a file."""
    from safetensors.torch import save as to_bytes

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {**description, "format": FORMAT, "step": step, "digest": digest(tensors)}
    content = to_bytes(tensors, {"scoresde": json.dumps(header)})
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the new name is safe once the folder is, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors: their names, shapes, types and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        state.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        UsageError: for a file that is missing, truncated, or not a checkpoint of this library.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    require(path.is_file(), f"checkpoint={str(path)!r}: no such file; give a file of a run's checkpoints/ folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("scoresde")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"checkpoint={str(path)!r}: damaged or not a safetensors file ({error})") from error
    foreign = UsageError(f"checkpoint={str(path)!r}: not a checkpoint of this library; its header lacks {FORMAT!r}")
    try:
        description = parse_json(header or "null")
    except ValueError as error:
        raise foreign from error
    needed = {"format", "step", "digest", "model"}
    if not isinstance(description, dict) or description.get("format") != FORMAT or not needed <= description.keys():
        raise foreign
    for field, kind in {"step": int, "model": dict, "data": dict, "config": dict}.items():
        value = description.get(field, {})
        require(isinstance(value, kind), f"checkpoint={str(path)!r}: {field}={value!r} in its header is damaged")
    if "data" in description:
        _check_data(description["data"], f"checkpoint={str(path)!r}")
    require(
        description["digest"] == digest(tensors),
        f"checkpoint={str(path)!r}: damaged, its checksum does not fit; use an earlier one",
    )
    return Checkpoint(description["step"], description, tensors, path)


def _check_data(data: Mapping[str, Any], source: str) -> None:
    """Raises `UsageError` unless a description of data says what sampling needs."""
    for field in ("center", "scale", "low", "high", "num_classes"):
        value: Any = data.get(field)
        if field == "num_classes":
            fits = type(value) is int and value >= 0
        else:
            columns = value if isinstance(value, list) and value and field in ("center", "scale") else [value]
            fits = all(type(v) in (int, float) and math.isfinite(v) and (field != "scale" or v != 0) for v in columns)
        require(fits, f"{source}: data.{field}={value!r} in its header is damaged")


def save_model(model: NetworkScoreModel, path: Path | str) -> None:
    """Writes a model to a file, to be read by `load_model`.

    Of a network of a class of your own the file holds the weights, not the class.

    Raises:
        UsageError: for an SDE or parametrisation of your own, which a file cannot describe, or a missing folder.
    """
    require(
        isinstance(model, NetworkScoreModel),
        f"model of {type(model).__name__}: only a NetworkScoreModel has weights to save; save the one it is made of",
    )
    path, compiled = Path(path), getattr(model.network, "_orig_mod", None)  # what torch.compile wraps
    network = model.network if compiled is None else compiled
    require(path.parent.is_dir(), f"path={str(path)!r}: its folder does not exist; make it first")
    built_in = CLASSES.get(type(network).__name__) is type(network)
    description = {
        "network": describe(network) if built_in else {"name": type(network).__name__},
        **{part: describe(getattr(model, part)) for part in ("sde", "parametrization")},
        "shape": list(model.shape),
    }
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("network.")}
    state |= {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors = {f"ema.{name}": value.detach().cpu().clone() for name, value in state.items()}
    save(path, 0, {"model": description}, tensors)


def load_model(
    path: Path | str, device: torch.device | str = "cpu", network: nn.Module | None = None
) -> NetworkScoreModel:
    """The model in a file of `save_model`, or in a run's checkpoint (its averaged weights), ready to sample from.

    No code in the file is run.

    Args:
        path: the file.
        device: where the model is to lie.
        network: for a model whose network is of a class of your own: one of that class, which takes on the weights.

    Raises:
        UsageError: for a file that cannot be read, or a network that does not fit it.
    """
    loaded = load(path)
    name = (loaded.description["model"].get("network") or {}).get("name")
    require(
        network is not None or name in CLASSES,
        f"network: {str(path)!r} holds the weights of {name}, which is no class of this library; give network={name}()",
    )
    return loaded._fill(build_model(loaded.description["model"], network), "ema").to(device)

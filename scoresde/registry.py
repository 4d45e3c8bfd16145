"""The map between objects and their descriptions in files.

A description is a class's name and its arguments, as JSON can hold them. An argument that is itself such an object is
described in the same way. Names in files select registered classes only: the built-in ones, and those that the running
program has registered. Nothing in a file is ever imported or run.

A class can be registered if its constructor keeps every argument as an attribute of the same name, as dataclasses do.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from scoresde import (
    autoencoding,
    classification,
    contrastive,
    hybrid,
    learned_sde,
    named_sdes,
    networks,
    objective,
    parametrization,
    upsampling,
)
from scoresde.codec import Codec, Scaling
from scoresde.errors import UsageError, require, unknown_name
from scoresde.sde import SDE

T = TypeVar("T")

_CLASSES: dict[str, type] = {
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
        parametrization.FlowParametrization,
        parametrization.EDMParametrization,
        parametrization.UnitVarianceInput,
        parametrization.TimeInput,
        parametrization.LogSigmaInput,
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
        objective.DenoisingObjective,
        objective.VariationalObjective,
        hybrid.HybridObjective,
        upsampling.UpsamplingObjective,
        classification.ClassificationObjective,
        contrastive.ContrastiveObjective,
        autoencoding.AutoencodingObjective,
        networks.MLP,
        networks.UNet,
        networks.MPUNet,
        networks.DiT,
        networks.MLPClassifier,
        networks.UNetClassifier,
        networks.LinearAutoencoder,
        networks.ConvAutoencoder,
        networks.TextTransformer,
        networks.ImageEncoder,
        networks.ContrastiveNetwork,
        networks.TinyAutoencoder,
        networks.PatchDiscriminator,
        Scaling,
    )
}


def register(cls: type[T]) -> type[T]:
    """Lets files name a user-defined class; returns the class, so it can be used as a decorator.

    Raises:
        UsageError: if the name is taken by another class, or the constructor takes *args or **kwargs.

    Example:
        @scoresde.register
        class MyNetwork(scoresde.Network): ...
    """
    name = cls.__name__
    taken = _CLASSES.get(name, cls)
    if taken is not cls:
        raise UsageError(f"register: the name {name} is taken by {taken.__module__}.{name}; rename your class")
    loose = [p.name for p in _parameters(cls).values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    require(not loose, f"register: {name} takes {loose}; a description needs every argument by name")
    _CLASSES[name] = cls
    return cls


def is_registered(cls: type) -> bool:
    """Whether files can name a class."""
    return _CLASSES.get(cls.__name__) is cls


def classes(kind: type) -> dict[str, type]:
    """The registered subclasses of a class, by name.

    For `nn.Module` these are the networks: SDEs and codecs with weights are modules too, but are left out.
    """
    others = (SDE, Codec) if kind is nn.Module else ()
    return {name: cls for name, cls in _CLASSES.items() if issubclass(cls, kind) and not issubclass(cls, others)}


def describe(thing: Any) -> dict[str, Any]:
    """The class and the arguments of an object, as JSON can hold them.

    Raises:
        UsageError: for an object of a class that is not registered, or with an argument that JSON cannot hold.
    """
    cls = type(thing)
    name = cls.__name__
    require(
        is_registered(cls),
        f"{name}: cannot be described in a file, which names only registered classes; register it with "
        "scoresde.register, or save its weights yourself",
    )
    description: dict[str, Any] = {"name": name}
    for argument, parameter in _parameters(cls).items():
        try:
            value = getattr(thing, argument)
        except AttributeError as error:
            raise UsageError(
                f"{name}: does not keep its argument {argument!r} as an attribute of that name; a file needs it"
            ) from error
        path = f"{name}.{argument}"
        description[argument] = _as_json(value, path)
        kind = _declared(cls, argument)
        if isinstance(description[argument], dict):
            require(
                isinstance(value, kind),
                f"{path}: holds a {type(value).__name__}, and is declared as {kind.__name__}; the file could not be "
                "loaded",
            )
        else:
            _check_value(description[argument], parameter.default, path)
    return description


def construct(description: Mapping[str, Any], kind: type, path: str) -> Any:
    """Builds the object of a description.

    Args:
        description: name and arguments; an argument that is not given has its default.
        kind: the class of which the object must be an instance.
        path: place of the description, for error messages.

    Raises:
        UsageError: for a class that is unknown or of another kind, or arguments that it does not take.
    """
    arguments = dict(description)
    name = str(arguments.pop("name", None))
    known = classes(kind)
    if name not in known:
        raise unknown_name(f"{path}.name", name, known)
    cls = known[name]
    parameters = _parameters(cls)
    for argument in arguments:
        if argument not in parameters:
            raise unknown_name(f"argument of {name} in {path}:", argument, list(parameters))
    made = {
        argument: _from_json(value, cls, parameters[argument], f"{path}.{argument}")
        for argument, value in arguments.items()
    }
    try:
        return cls(**made)
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: {name} cannot be constructed from {made} ({error})") from error


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def _declared(cls: type, argument: str) -> type:
    """The class of an argument's annotation; object if that is not a plain class, or cannot be resolved."""
    try:
        hint = typing.get_type_hints(cls.__init__).get(argument)  # type: ignore[misc]
    except NameError:
        return object
    return hint if isinstance(hint, type) else object


def _as_json(value: Any, path: str) -> Any:
    """A value as JSON can hold it."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # numpy's floats are subclasses of float
    if isinstance(value, tuple | list):
        return [_as_json(part, f"{path}[{i}]") for i, part in enumerate(value)]
    if is_registered(type(value)):
        return describe(value)
    raise UsageError(
        f"{path}: holds a {type(value).__name__}, which a file cannot describe; register the class with "
        "scoresde.register"
    )


def _from_json(value: Any, cls: type, parameter: inspect.Parameter, path: str) -> Any:
    """The argument that a value of a description represents; lists become tuples."""
    if isinstance(value, Mapping):
        return construct(value, _declared(cls, parameter.name), path)
    _check_value(value, parameter.default, path)
    return _tuple(value, path) if isinstance(value, tuple | list) else value


def _tuple(values: Sequence[Any], path: str) -> tuple[Any, ...]:
    """A list as a tuple, with the objects that it describes."""
    parts = []
    for i, value in enumerate(values):
        if isinstance(value, Mapping):
            value = construct(value, object, f"{path}[{i}]")
        elif isinstance(value, tuple | list):
            value = _tuple(value, f"{path}[{i}]")
        parts.append(value)
    return tuple(parts)


def _check_value(value: Any, default: Any, path: str) -> None:
    """Raises `UsageError` for a value of a description whose type differs from that of the argument's default."""
    if default is None or default is inspect.Parameter.empty:
        return
    if not isinstance(default, bool | int | float | str | tuple | list):
        raise UsageError(f"{path}={value!r}: need an object, described by its name and arguments")
    kinds: dict[type, tuple[type, ...]] = {float: (float, int), tuple: (tuple, list), list: (tuple, list)}
    fits = type(value) in kinds.get(type(default), (type(default),)) or _numbers_for(default, value)
    require(fits, f"{path}={value!r}: need a value like {default!r}")


def _numbers_for(default: Any, value: Any) -> bool:
    """Whether a value is a list of numbers in place of one number, as a codec's scale may be."""
    return (
        isinstance(default, float)
        and isinstance(value, tuple | list)
        and len(value) > 0
        and all(type(part) in (float, int) for part in value)
    )

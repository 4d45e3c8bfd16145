"""The tensors of other projects' files, and their places in networks of this library."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from scoresde.errors import UsageError, require

N = TypeVar("N", bound=nn.Module)
HOW_TO_CONVERT = (
    "load it where it was made, and write its tensors with safetensors.torch.save_file(state_dict, 'w.safetensors')"
)


HUB = "hf:"  # before a name of Hugging Face's hub


class Place(NamedTuple):
    """Where a tensor of a file belongs.

    Attributes:
        name: in the file.
        view: of a parameter or buffer, which it is copied to.
        shape: that it has in the file, apart from axes of length 1; that of the view if None.
    """

    name: str
    view: Tensor
    shape: tuple[int, ...] | None = None


def build(kind: type[N], inferred: Mapping[str, Any], settings: Mapping[str, Any]) -> N:
    """A network of what follows from a file, and of what a user sets in its place.

    Raises:
        UsageError: for a setting that the network does not have.
    """
    known = signature(kind).parameters
    for name, value in settings.items():
        require(name in known, f"network.{name}={value!r}: these weights are of a {kind.__name__}, which has no {name}")
    return kind(**{**inferred, **settings})


def places(layer: nn.Module, prefix: str) -> Iterator[Place]:
    """The places of a layer whose parameters have the same names in the file, behind a prefix."""
    for name, parameter in layer.named_parameters():
        yield Place(f"{prefix}.{name}", parameter.detach())


def thirds(layer: nn.Module, prefixes: Iterable[str]) -> Iterator[Place]:
    """The places of queries, keys and values, which the file holds apart."""
    names = list(prefixes)
    for name, parameter in layer.named_parameters():
        for prefix, part in zip(names, parameter.detach().chunk(3), strict=True):
            yield Place(f"{prefix}.{name}", part)


def copy_in(network: nn.Module, where: Iterable[Place], tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies tensors to their places, each exactly once.

    Args:
        network: which the places belong to; they cover all of it.
        where: the places.
        tensors: by their names in the file.
        source: what to call the file in error messages.

    Raises:
        UsageError: for a tensor that is missing, has another shape, or has no place.
    """
    left = dict(tensors)
    covered = 0
    for name, view, shape in where:
        require(name in left, f"{source}: lacks {name}, which this architecture has; it is of another one")
        tensor = left.pop(name)
        expected = tuple(view.shape) if shape is None else shape
        require(
            _without_ones(tensor.shape) == _without_ones(expected),
            f"{source}: {name} has shape {tuple(tensor.shape)}, and this architecture needs {expected}",
        )
        view.copy_(tensor.reshape(view.shape))
        covered += view.numel()
    assert covered == sum(tensor.numel() for tensor in network.state_dict().values())
    require(
        not left,
        f"{source}: holds {next(iter(left), '')}, and {len(left) - 1} more tensors, for which this architecture has no "
        "place; it is of another one",
    )


def copy_out(where: Iterable[Place]) -> dict[str, Tensor]:
    """The tensors of a network by their names in another project's file."""
    return {name: view.reshape(shape or view.shape).clone() for name, view, shape in where}


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def swap_halves(layer: nn.Linear) -> None:
    """Exchanges the two halves of a layer's inputs, such as sines and cosines."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight.roll(layer.in_features // 2, 1))


@torch.no_grad()
def negate(parameters: Iterable[nn.Parameter]) -> None:
    """Changes the sign of parameters: of all in the last layer, that of what a network gives."""
    for parameter in parameters:
        parameter.neg_()


def read_file(path: Path, source: str) -> dict[str, Any]:
    """What a file of PyTorch or of safetensors holds: tensors by name, or dicts of them.

    Nothing in the file is run.

    Raises:
        UsageError: for a file that cannot be read in this way.
    """
    require(path.is_file(), f"{source}: no such file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{source}: damaged or not a safetensors file ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of old kinds of pickles
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {named[1]}" if named else type(error).__name__
        raise UsageError(
            f"{source}: is not made of tensors alone, or is damaged, and nothing else is read, as it could run code "
            f"({reason}); {HOW_TO_CONVERT}"
        ) from error
    require(isinstance(found, Mapping), f"{source}: holds a {type(found).__name__}; need tensors by name")
    return {str(name): value for name, value in found.items()}


def only_tensors(found: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The entries of a state dict.

    Raises:
        UsageError: for an entry that is not a tensor.
    """
    for name, value in found.items():
        require(
            isinstance(value, Tensor),
            f"{source}: {name} is a {type(value).__name__}, not a tensor; need the state dict of a network",
        )
    return dict(found)


@contextlib.contextmanager
def as_damaged(source: str) -> Iterator[None]:
    """While entered, what goes wrong with shapes and values that nobody would write is a `UsageError` about a file."""
    try:
        yield
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{source}: lacks {error.args[0]}; it is damaged, or of another architecture") from error
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{source}: is damaged, or of another architecture ({reason})") from error


def downloaded(name: str, source: str) -> Path:
    """The folder of a model of Hugging Face's hub."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # of the network, of the name, of rights
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"{source}: cannot be had from the hub ({reason}); give a local folder") from error

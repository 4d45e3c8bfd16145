"""What a model is conditioned on.

A condition is None, a tensor, or a dict of conditions, nested to any depth. The first dimension of every tensor in it
is the batch: `(B, ...)`. So one type serves labels `(B,)`, vectors `(B, D)`, images, and several at once, such as
`{"tokens": (B, L, D), "mask": (B, L)}`. Networks and wrappers decide what the parts mean.

All code that slices, moves, counts or joins conditions goes through this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scoresde.errors import UsageError, require

Condition: TypeAlias = "Tensor | Mapping[str, Condition] | None"

_BARELY_SUPPORTED = (torch.uint16, torch.uint32, torch.uint64)  # torch can hold these, and compute little with them


def apply(function: Callable[..., Tensor], *conds: Condition) -> Condition:
    """Applies a function to each tensor of a condition, or to the matching tensors of several.

    Raises:
        UsageError: for conditions with different parts.
    """
    return _apply(function, conds, "cond")


def _apply(function: Callable[..., Tensor], conds: Sequence[Condition], name: str) -> Condition:
    first = conds[0]
    if first is None and all(cond is None for cond in conds):
        return None
    if isinstance(first, Tensor) and all(isinstance(cond, Tensor) for cond in conds):
        return function(*conds)
    if isinstance(first, Mapping) and all(isinstance(cond, Mapping) and cond.keys() == first.keys() for cond in conds):
        return {
            key: _apply(function, [cond[key] for cond in conds], f"{name}[{key!r}]")  # type: ignore[index]
            for key in first
        }
    kinds = " and ".join(describe(cond, name) for cond in conds)
    raise UsageError(f"{name}: {kinds} have different parts; give conditions of one kind")


def parts(cond: Condition, name: str = "cond") -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a condition, with its name as a user would write it: `cond['tokens']`.

    Raises:
        UsageError: for a part that is not a condition.
    """
    if isinstance(cond, Tensor):
        yield name, cond
    elif isinstance(cond, Mapping):
        for key, part in cond.items():
            yield from parts(part, f"{name}[{key!r}]")
    elif cond is not None:
        raise UsageError(f"{name}: is a {type(cond).__name__}; need a tensor, None, or a dict of these")


def take(cond: Condition, index: slice | Tensor) -> Condition:
    """The conditions of some samples."""
    return apply(lambda part: part[index], cond)


def to(cond: Condition, device: torch.device | str) -> Condition:
    """The condition on a device."""
    return apply(lambda part: part.to(device), cond)


def join(conds: Sequence[Condition]) -> Condition:
    """The conditions of several batches as those of one."""
    return apply(lambda *tensors: torch.cat(tensors), *conds)


def count(cond: Condition) -> int | None:
    """The number of samples that a condition is for; None if it holds no tensor.

    Raises:
        UsageError: for parts of different lengths, or without a batch dimension.
    """
    found: dict[str, int] = {}
    for name, part in parts(cond):
        if part.ndim == 0:
            raise UsageError(f"{name}: is a single number; need one entry a sample, (B, ...)")
        found[name] = len(part)
    if len(set(found.values())) > 1:
        lengths = ", ".join(f"{name} has {length}" for name, length in found.items())
        raise UsageError(f"cond: its parts are for different numbers of samples: {lengths}")
    return next(iter(found.values()), None)


def check_count(cond: Condition, num_samples: int) -> None:
    """Raises `UsageError` unless a condition has one entry a sample, or is None."""
    found = count(cond)
    if found is not None and found != num_samples:
        raise UsageError(f"cond of length {found}: need one entry a sample, {num_samples}")


def from_values(values: Any, num_samples: int) -> Condition:
    """The condition made from a user's values: one entry a sample, or one number for all samples.

    Args:
        values: None, a number, a tensor, an array, a list, or a dict of these.
        num_samples: how many samples the condition is for.

    Raises:
        UsageError: for anything else, or another number of entries.
    """
    cond = _expand_numbers(_from_values(values, "cond"), num_samples)
    check_count(cond, num_samples)
    return cond


def spread(values: Any, num_samples: int) -> Condition:
    """`from_values` for any number of entries: of too many, evenly spaced ones are taken; too few are repeated."""
    cond = _from_values(values, "cond")
    given = next((len(part) for _, part in parts(cond) if part.ndim > 0), num_samples)
    cond = _expand_numbers(cond, given)
    if count(cond) in (None, num_samples):
        return cond
    require(given > 0, "cond: is empty; give at least one entry")
    place = torch.arange(num_samples)
    return take(cond, place * given // num_samples if given > num_samples else place % given)


def _from_values(values: Any, name: str) -> Condition:
    if values is None:
        return None
    if isinstance(values, Mapping):
        return {key: _from_values(part, f"{name}[{key!r}]") for key, part in values.items()}
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name}: cannot be converted to a tensor ({error}); give a tensor, an array, a list or a dict"
        ) from error
    return tensor.long() if tensor.dtype in _BARELY_SUPPORTED else tensor


def _expand_numbers(cond: Condition, num_samples: int) -> Condition:
    """A condition with its single numbers repeated for all samples."""
    return apply(lambda part: part.expand(num_samples) if part.ndim == 0 else part, cond)


def describe(cond: Condition, name: str = "cond") -> str:
    """The kind of a condition, for error messages: its parts with their types and shapes."""
    if cond is None:
        return "no condition"
    found = []
    for part_name, part in parts(cond, name):
        called = "a tensor" if part_name == name else part_name
        found.append(f"{called} ({str(part.dtype).removeprefix('torch.')}, {tuple(part.shape)})")
    return ", ".join(found) or "an empty condition"

"""One entry for the published weights of all formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scoresde.errors import UsageError, require
from scoresde.interop import dit, guided_diffusion, hf_diffusers, score_sde
from scoresde.interop.weights import HUB, as_damaged, downloaded, read_file
from scoresde.models.network import NetworkScoreModel

SIGNS: dict[str, Callable[[Mapping[str, Any]], bool]] = {  # by which a file's format is known
    "score_sde": lambda found: {"model", "ema"} <= found.keys(),
    "guided_diffusion": lambda found: "input_blocks.0.0.weight" in found,
    "dit": lambda found: "x_embedder.proj.weight" in found,
}
DIFFUSERS = "diffusers"
FORMATS = (*SIGNS, DIFFUSERS)


def load_published(
    path: Path | str,
    kind: str | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    sde: str | None = None,
    qkv: str | None = None,
    schedule: str | None = None,
    size: Sequence[int] = (),
) -> NetworkScoreModel:
    """A model with published weights, ready to sample from. No code in a file is run.

    Args:
        path: a file of score_sde_pytorch, guided-diffusion, DiT or SiT; a folder of diffusers; or "hf:NAME" for one of
            Hugging Face's hub, which is then downloaded.
        kind: "score_sde", "guided_diffusion", "dit" or "diffusers"; as the file looks by default.
        settings: arguments of the network, in place of those that follow from the file.
        sde: what the network was trained under, where the file does not say: "vp" or "subvp" of score_sde; "ddpm" or
            "flow" of dit.
        qkv: of guided_diffusion: "new" or "legacy", the order of the rows of queries, keys and values.
        schedule: of guided_diffusion: "linear" or "cosine" betas.
        size: of the images, where the file does not say.

    Raises:
        UsageError: for a file of another format or architecture, or one that needs an argument that is not given.

    Example:
        model = load_published("checkpoint_8.pth")  # of score_sde_pytorch
    """
    source = f"from={str(path)!r}"
    require(kind is None or kind in FORMATS, f"as={kind!r}: need {', '.join(FORMATS)}")
    require(
        len(size) in (0, 2) and all(side >= 1 for side in size),
        f"size={tuple(size)}: need (height, width), as in (32, 32)",
    )
    place = downloaded(str(path).removeprefix(HUB), source) if str(path).startswith(HUB) else Path(path).expanduser()
    options = _Options(settings or {}, sde, qkv, schedule, tuple(size))
    with as_damaged(source):
        return _converted(place, kind, source, options).eval().requires_grad_(False)


class _Options(NamedTuple):
    """What a user says of published weights, as `load_published` has it."""

    settings: Mapping[str, Any]
    sde: str | None
    qkv: str | None
    schedule: str | None
    size: tuple[int, ...]


def _converted(place: Path, kind: str | None, source: str, options: _Options) -> NetworkScoreModel:
    """The model of a file or folder.

    Raises:
        UsageError: as `load_published` does.
    """
    given, sde, qkv, schedule, size = options
    if place.is_dir() or kind == DIFFUSERS:
        require(place.is_dir(), f"{source}: no such folder; --as diffusers needs one that diffusers saved")
        require(kind in (None, DIFFUSERS), f"{source}: is a folder; --as {kind} needs a file")
        _refuse({"sde": sde, "qkv": qkv, "schedule": schedule}, DIFFUSERS)
        return hf_diffusers.convert(place, source, given, size)
    found = read_file(place, source)
    averaged = found.get("ema")
    if isinstance(averaged, Mapping) and SIGNS["dit"](averaged):  # of a training of DiT or SiT, with its optimiser
        found = dict(averaged)
    if kind is None:
        kind = next((name for name, sign in SIGNS.items() if sign(found)), None)
    if kind is None:
        raise UsageError(
            f"{source}: of no known format; it holds {', '.join(list(found)[:3]) or 'nothing'}; name it by --as "
            f"{', '.join(SIGNS)}"
        )
    if kind == "score_sde":
        _refuse({"qkv": qkv, "schedule": schedule}, kind)
        return score_sde.convert(found, source, given, sde, size)
    if kind == "guided_diffusion":
        _refuse({"sde": sde}, kind)
        return guided_diffusion.convert(found, source, given, qkv, schedule, size)
    _refuse({"qkv": qkv, "schedule": schedule}, kind)
    return dit.convert(found, source, given, sde, size)


def _refuse(options: Mapping[str, Any], kind: str) -> None:
    """Raises `UsageError` for an option that a format does not have."""
    for name, value in options.items():
        require(value is None, f"{name}={value!r}: says nothing about a file of {kind}; leave it out")

"""A pipeline file: the parts of a text-to-image or latent model, trained apart, by place and checksum.

A run that learns latents or captions writes one, `pipeline.json`. It is JSON:

    {"format": "scoresde pipeline 1",
     "generator": {"path": ..., "digest": ...}, "autoencoder": {...}, "text_encoder": {...}}

Paths are relative to the file, but for names such as "minilm". Flags of the same names put another part in the place of
one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from scoresde._files import write_text
from scoresde._json import parse_json
from scoresde.app.parts import TEXT_ENCODER
from scoresde.checkpoint import Checkpoint, read_header
from scoresde.descriptions import LATENT, SCORE
from scoresde.errors import UsageError, require
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.models.network import NetworkScoreModel

FORMAT = "scoresde pipeline 1"
GENERATOR = "generator"
AUTOENCODER = "autoencoder"
PARTS = (GENERATOR, AUTOENCODER, TEXT_ENCODER)


@final
@dataclass(frozen=True)
class GivenParts:
    """Parts that take the place of a model's own; None for its own.

    Attributes:
        autoencoder: a run or a file.
        text_encoder: a run, a file, a folder or a name.
    """

    autoencoder: str | None = None
    text_encoder: str | None = None

    def filled_from(self, pipeline: Pipeline) -> GivenParts:
        """The same, with the parts of a pipeline where none is given."""
        return replace(
            self,
            autoencoder=self.autoencoder or pipeline.autoencoder,
            text_encoder=self.text_encoder or pipeline.text_encoder,
        )


@final
@dataclass(frozen=True)
class Pipeline:
    """Where the parts of a pipeline lie; None for those that it does not have, or that others take the place of."""

    generator: str | None
    autoencoder: str | None
    text_encoder: str | None


def write_pipeline(path: Path, generator: Path, header: Mapping[str, Any]) -> None:
    """Writes the pipeline of a trained model, if it has parts of its own.

    Args:
        path: the file.
        generator: the checkpoint of the model.
        header: of this checkpoint.
    """
    codec = header["models"][SCORE]["codec"]
    parts = {GENERATOR: {"path": str(generator), "digest": header["digest"]}}
    if codec.get("name") == LATENT:
        parts[AUTOENCODER] = {"path": codec["path"], "digest": codec["digest"]}
    if TEXT_ENCODER in header:
        parts[TEXT_ENCODER] = {name: header[TEXT_ENCODER][name] for name in ("path", "digest")}
    if len(parts) == 1:
        return
    for part in parts.values():
        if Path(part["path"]).exists():
            part["path"] = os.path.relpath(part["path"], path.parent)
    write_text(path, json.dumps({"format": FORMAT, **parts}, indent=2) + "\n")


def read_pipeline(given: str, replaced: Collection[str] = ()) -> Pipeline:
    """The parts that a pipeline file names, which must be those that it was written with.

    Args:
        given: the file.
        replaced: names of the parts whose place others take; they may be missing.

    Raises:
        UsageError: for a file that cannot be read, or a part that is missing or has changed.
    """
    source = f"pipeline={given!r}"
    path = Path(given)
    require(path.is_file(), f"{source}: no such file; a run of a latent model or of captions has a pipeline.json")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{source}: not JSON ({error})") from error
    require(
        isinstance(content, dict) and content.get("format") == FORMAT and GENERATOR in content,
        f"{source}: not a pipeline; it lacks {FORMAT!r} or its {GENERATOR}",
    )
    found = {name: None if name in replaced else _place(content.get(name), name, path, source) for name in PARTS}
    return Pipeline(found[GENERATOR], found[AUTOENCODER], found[TEXT_ENCODER])


def _place(part: Any, name: str, path: Path, source: str) -> str | None:
    """Where a part lies; None if the pipeline has none."""
    if part is None:
        return None
    named, digest = (str(part.get(key, "")) if isinstance(part, Mapping) else "" for key in ("path", "digest"))
    require(named != "" and digest != "", f"{source}: its {name} is damaged")
    place = path.parent / named
    flag = "checkpoint" if name == GENERATOR else name
    if not place.is_file():
        require(
            not named.endswith(".safetensors"),
            f"{source}: its {name} {digest} was at {str(place)!r} and is not there; give its place by --{flag}",
        )
        return str(place) if place.exists() else named
    now = read_header(place)["digest"]
    require(
        now == digest,
        f"{source}: its {name} was {digest}, and {str(place)!r} is now {now}; put it back, or give another by --{flag}",
    )
    return str(place)


def check_latents(model: NetworkScoreModel, checkpoint: Checkpoint, file: Path) -> None:
    """Raises `UsageError` unless a model can be decoded by an autoencoder that is not its own."""
    codec = model.codec
    assert isinstance(codec, AutoencoderCodec)
    own = checkpoint.description["models"][SCORE]["codec"]
    network = codec.autoencoder.plain()
    here = network.latent_channels, network.factor
    need = model.shape[0], own.get("factor", network.factor)
    require(
        here == need,
        f"autoencoder={str(file)!r}: gives {here[0]} channels of a size {here[1]} times smaller, and the model learned "
        f"{need[0]} channels of a size {need[1]} times smaller; give {own.get('path')!r}, or one like it",
    )

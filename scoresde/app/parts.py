"""The parts of a model that are trained apart from it: the autoencoder of its latents, and the encoder of its texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde.app.progress import Progress
from scoresde.app.run_folder import checkpoint_at
from scoresde.checkpoint import Checkpoint, load_autoencoder, named_models, places, read_header
from scoresde.codec import Codec, Scaling, same_scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.latents import encoded
from scoresde.data.scaling import suits
from scoresde.descriptions import AUTOENCODER, LATENT, describe_codec
from scoresde.errors import UsageError, require
from scoresde.models.latent_codec import AutoencoderCodec, without_latents
from scoresde.registry import construct
from scoresde.text import TextEncoder, encode_cached, open_text_encoder

TEXT_ENCODER = "text_encoder"  # its name in the header of a checkpoint
EXAMPLES = 100  # captions that a checkpoint remembers


def open_autoencoder(given: str, flag: str = "autoencoder") -> AutoencoderCodec:
    """The autoencoder of a run, or in a file."""
    return load_autoencoder(autoencoder_at(given, flag))


def autoencoder_at(given: str, flag: str = "autoencoder") -> Path:
    """The checkpoint of an autoencoder: the newest of a run, or a file.

    Raises:
        UsageError: for a path without one.
    """
    file = checkpoint_at(given, flag)
    models = read_header(file)["models"]
    require(
        AUTOENCODER in models,
        f"{flag}={given!r}: holds {named_models(models)} and no autoencoder; give a run of --mode train_autoencoder",
    )
    return file


def open_text(given: str, device: torch.device, flag: str = TEXT_ENCODER) -> TextEncoder:
    """The text encoder of a run, in a file or folder, or of a name."""
    try:
        return open_text_encoder(_file(given, flag), device)
    except UsageError as error:
        raise UsageError(f"{flag}={given!r}: {error}") from error


def _file(given: str, flag: str) -> str:
    """The newest checkpoint of a run; anything else as it is."""
    return str(checkpoint_at(given, flag)) if (Path(given) / "checkpoints").is_dir() else given


class Prepared(NamedTuple):
    """Data as a model is trained on them, and what its checkpoints say of its parts."""

    data: ArrayData
    held_out: ArrayData | None
    record: dict[str, Any]


def with_parts(
    folder: Path, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
) -> Prepared:
    """Data with encoded captions, and in latents, as a configuration says.

    Args:
        folder: of the run, which keeps encoded captions.
        config: its `data.text_encoder` and `data.autoencoder` are read.
        data, held_out: as they were read.
        device: where to compute.

    Raises:
        UsageError: for captions without an encoder, an encoder without captions, or a part that does not fit.
    """
    parts = [data] if held_out is None else [data, held_out]
    record: dict[str, Any] = {}
    named = config.data.text_encoder
    if named:
        require(
            data.texts != (),
            f"config.data.text_encoder={named!r}: the data have no captions; name some by config.data.captions, or "
            "leave the encoder out",
        )
        encoder = open_text(named, device, "config.data.text_encoder")
        table = captioned(data, encoder, folder).table
        parts = [replace(part, table=table) for part in parts]
        examples = list(dict.fromkeys(captions(parts[-1])))[:EXAMPLES]
        file = _file(named, "config.data.text_encoder")
        record[TEXT_ENCODER] = {"path": file, "digest": encoder.digest, "examples": examples}
    require(
        named != "" or not data.texts,
        "config.data.text_encoder='': the data have captions; name an encoder of texts, such as a run of --mode "
        "train_text_encoder or minilm, or leave the captions out",
    )
    if config.data.autoencoder:
        require(
            not config.training.flip,
            "training.flip=True: the latents of a mirrored image are not those of the image, mirrored; set it to False",
        )
        require(
            not config.training.dequantize,
            "training.dequantize=True: latents are no whole numbers; set it to False, as the bound of --mode evaluate "
            "is of whole numbers without it",
        )
        codec = open_autoencoder(config.data.autoencoder, "config.data.autoencoder")
        _check_scaling(config, data, codec)
        parts = [_in_latents(part, codec, device) for part in parts]
    return Prepared(parts[0], parts[1] if held_out is not None else None, record)


def _check_scaling(config: ConfigDict, data: ArrayData, codec: AutoencoderCodec) -> None:
    """Raises `UsageError` for data far from those of an autoencoder, or a scaling that is given and is not its own."""
    own = without_latents(codec)
    named = f"config.data.autoencoder={config.data.autoencoder!r}"
    require(
        not (config.data.center or config.data.scale) or same_scaling(own, data.codec),
        f"config.data.center={config.data.center}, scale={config.data.scale}: the autoencoder has a scaling of its "
        f"own, {own}; leave them out",
    )
    if isinstance(own, Scaling) and data.shape[:1] == codec.autoencoder.shape[:1]:
        require(
            suits(data.values, own),
            f"{named}: scales its data by {own}, from which these data are far; train an autoencoder on them",
        )


def _in_latents(data: ArrayData, codec: AutoencoderCodec, device: torch.device) -> ArrayData:
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, or the only one
    with Progress("encode", len(data), unit="samples", shown=first) as progress:
        return encoded(data, codec, device, progress.update)


def captioned(data: ArrayData, encoder: TextEncoder, folder: Path | None) -> ArrayData:
    """Data with their captions encoded, kept in texts/ of a run's folder."""
    table = encoder.encode(data.texts) if folder is None else encode_cached(encoder, data.texts, folder / "texts")
    return replace(data, table=table)


def captions(data: ArrayData) -> list[str]:
    """The caption of each sample."""
    numbers = data.cond["text"] if isinstance(data.cond, Mapping) else None
    assert isinstance(numbers, Tensor)
    return [data.texts[number] for number in numbers.tolist()]


def check_same_parts(
    was: Mapping[str, Any], model: Mapping[str, Any], now: Mapping[str, Any], codec: Codec, source: str, folder: Path
) -> None:
    """Raises `UsageError` if a run would go on with another scaling, autoencoder or text encoder.

    Args:
        was, now: headers of its checkpoints.
        model: the description of its model in `was`.
        codec: of the data now.
        source: the run, for errors.
        folder: of the run.
    """
    before, here = model["codec"], describe_codec(codec)
    if LATENT in (before.get("name"), here["name"]):
        require(
            before.get("digest") == here.get("digest"),
            f"{source}: its run learns the latents of {before.get('path', 'no autoencoder')} ({before.get('digest')}), "
            f"and config.data.autoencoder names {here.get('digest', 'none')} now; choose another --workdir",
        )
    else:
        scaling = construct(before, Codec, "codec")
        require(
            same_scaling(scaling, codec),
            f"{source}: its run scales the data by {scaling}, which would now be {codec}; choose "
            f"another --workdir, with --init_from {folder} to keep what was learned",
        )
    texts = [header.get(TEXT_ENCODER, {}).get("digest") for header in (was, now)]
    require(
        texts[0] == texts[1],
        f"{source}: its run encodes captions by {texts[0]}, and config.data.text_encoder names {texts[1]} now; choose "
        "another --workdir",
    )


def examples_of(header: Checkpoint) -> list[str]:
    """Captions of the data that a model was trained on."""
    return list(_recorded(header)["examples"])


def recorded_text_encoder(header: Checkpoint, given: str | None, device: torch.device) -> TextEncoder:
    """The text encoder with which a model was trained, or the one that is given.

    Raises:
        UsageError: if it is missing, or has changed.
    """
    if given is not None:
        return open_text(given, device)
    source = f"checkpoint={str(header.path)!r}"
    record = _recorded(header)
    digest, named = record["digest"], record["path"]
    place = next((str(path) for path in places(named, header.path) if path.exists()), named)
    remedy = "give its place by --text_encoder"
    try:
        encoder = open_text_encoder(place, device)
    except UsageError as error:
        raise UsageError(
            f"{source}: its text encoder {digest} was at {named!r} and cannot be read there ({error}); {remedy}"
        ) from error
    require(
        encoder.digest == digest,
        f"{source}: its text encoder was {digest}, and {place!r} is now {encoder.digest}; {remedy}",
    )
    return encoder


def _recorded(header: Checkpoint) -> Mapping[str, Any]:
    """What a checkpoint says of its text encoder."""
    record = header.description[TEXT_ENCODER]
    kinds = {"path": str, "digest": str, "examples": list}
    for name, kind in kinds.items():
        value = record.get(name) if isinstance(record, Mapping) else None
        require(
            isinstance(value, kind) and value != [],
            f"checkpoint={str(header.path)!r}: {TEXT_ENCODER}.{name}={value!r} in its header is damaged",
        )
    return record

"""Encoded captions, kept on disk: a data set is encoded once for all runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from scoresde._files import MARK, write_bytes
from scoresde.checkpoint import digest
from scoresde.text.base import TextEncoder, checked

DIGEST = "digest"


def encode_cached(encoder: TextEncoder, texts: Sequence[str], folder: Path) -> dict[str, Tensor]:
    """`encoder.encode(texts)`, from the file of an earlier call if there is one, else written to it.

    The file's name is a checksum of the encoder and the texts, so that another encoder or other texts have another
    file. A damaged file is written again, with a warning.

    Args:
        encoder: of the texts.
        texts: all texts of a data set.
        folder: of these files; it is made if it is not there.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors.torch import save

    path = folder / f"{_key(encoder, checked(texts))}.safetensors"
    if path.is_file():
        found = _read(path)
        if found is not None:
            return found
        logging.getLogger(__name__).warning("encoded captions: %s is damaged; they are encoded again", path)
    found = encoder.encode(texts)
    folder.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.stem}-{secrets.token_hex(8)}")  # several processes of a run may write at once
    write_bytes(own, save(found, {"about": MARK, DIGEST: digest(found)}))
    os.replace(own, path)
    return found


def _key(encoder: TextEncoder, texts: Sequence[str]) -> str:
    """A checksum of what the encoded captions depend on."""
    about = json.dumps([encoder.digest, encoder.max_length, encoder.context_channels, *texts])
    return hashlib.blake2b(about.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The content of a file, None if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            said = (file.metadata() or {}).get(DIGEST)
    except SafetensorError:
        return None
    return found if said == digest(found) else None

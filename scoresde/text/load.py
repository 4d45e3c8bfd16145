"""One entry for the text encoders of all kinds."""

from __future__ import annotations

from pathlib import Path

import torch

from scoresde import checkpoint
from scoresde.errors import UsageError
from scoresde.text.base import TextEncoder
from scoresde.text.own import OwnTextEncoder
from scoresde.text.pretrained import HUB, MINILM, PretrainedTextEncoder


def open_text_encoder(given: str, device: torch.device | str = "cpu") -> TextEncoder:
    """The text encoder that a user names, frozen.

    Args:
        given: a checkpoint of --mode train_text_encoder (.safetensors), a folder of BERT, CLIP or T5 that
            transformers saved, "minilm" for the one that an installed package holds, or "hf:NAME" for one of Hugging
            Face's hub.
        device: where to compute.

    Raises:
        UsageError: for anything else, or what cannot be loaded.
    """
    place = Path(given).expanduser()
    if given == MINILM or (given.startswith(HUB) and given != HUB):
        return PretrainedTextEncoder(given, device)
    if (place / "config.json").is_file() and not (place / "checkpoints").is_dir():
        return PretrainedTextEncoder(str(place), device)
    if place.suffix == ".safetensors" and place.is_file():
        found = checkpoint.load(place)
        return OwnTextEncoder(found.text_encoder().to(device), found.digest)
    raise UsageError(
        f"text encoder {given!r}: need a checkpoint of --mode train_text_encoder (.safetensors), a folder of BERT, "
        f"CLIP or T5 that transformers saved, {MINILM!r}, or '{HUB}NAME' of Hugging Face's hub"
    )

"""Folders of a model with a card, and Hugging Face's hub."""

from __future__ import annotations

from pathlib import Path

import torch

from scoresde._files import write_text
from scoresde.checkpoint import load_model, save_model
from scoresde.errors import UsageError, require
from scoresde.models.network import NetworkScoreModel

WEIGHTS = "model.safetensors"
CARD = "README.md"
DESCRIPTION = "A score-based generative model."

TEXT = """---
library_name: scoresde
license: {license}
tags:
- diffusion
- score-based-generative-modelling
---

# {title}

{description}

| | |
|---|---|
| network | {network}, {count:,} parameters |
| SDE | {sde} |
| parametrisation | {rule} |
| samples | {shape}{classes} |
| units | {codec} |

```python
import samplers
from scoresde.interop import from_pretrained

model = from_pretrained("{name}")
x, nfe = samplers.sample(model, samplers.Heun(), 16{cond})
images = model.codec.decode(x)
```
"""


def save_pretrained(
    model: NetworkScoreModel,
    folder: Path | str,
    *,
    title: str = "",
    description: str = DESCRIPTION,
    license: str = "other",
) -> None:
    """Writes a model and its card to a folder: `model.safetensors`, which describes itself, and `README.md`.

    Args:
        model: what is written.
        folder: where; it is made if it is not there.
        title: of the card; by default the folder's name.
        description: data, training and what is measured, in Markdown.
        license: of the weights, as Hugging Face names it, such as "mit".

    Raises:
        UsageError: for a model that a file cannot describe, or a folder that cannot be made.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder={str(folder)!r}: cannot be made ({error.strerror}); choose another") from error
    _write(model, place, place.name, title, description, license)


def _write(model: NetworkScoreModel, folder: Path, name: str, title: str, description: str, license: str) -> None:
    """Writes a model and its card, whose example loads it by a name."""
    save_model(model, folder / WEIGHTS)
    num_classes = getattr(model.network, "num_classes", 0)
    card = TEXT.format(
        license=license,
        title=title or name.rpartition("/")[2],
        description=description,
        network=type(model.network).__name__,
        count=sum(parameter.numel() for parameter in model.network.parameters()),
        sde=model.sde,
        rule=model.parametrization,
        shape=" x ".join(map(str, model.shape)),
        classes=f", {num_classes} classes" if num_classes else "",
        codec=model.codec,
        name=name,
        cond=", cond=0" if num_classes else "",
    )
    write_text(folder / CARD, card)


def from_pretrained(name: Path | str, device: torch.device | str = "cpu") -> NetworkScoreModel:
    """The model of a folder that `save_pretrained` wrote, or of one of Hugging Face's hub, which is downloaded.

    No code in it is run.

    Raises:
        UsageError: if there is none.
    """
    place = Path(name)
    if place.is_dir():
        require(
            (place / WEIGHTS).is_file(), f"name={str(name)!r}: holds no {WEIGHTS}; need a folder of save_pretrained"
        )
        return load_model(place / WEIGHTS, device)
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(str(name), WEIGHTS)
    except Exception as error:  # of the network, of the name, of rights
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"name={str(name)!r}: no such folder, and not to be had from the hub ({reason})") from error
    return load_model(file, device)


def push_to_hub(
    model: NetworkScoreModel,
    name: str,
    *,
    private: bool = False,
    title: str = "",
    description: str = DESCRIPTION,
    license: str = "other",
) -> str:
    """Uploads a model and its card to Hugging Face's hub, as the user who is logged in there; returns its address.

    Args:
        model: what is uploaded.
        name: of the repository, as in "user/model"; it is made if it is not there.
        private: whether a new one is private.
        title, description, license: of the card, as of `save_pretrained`.
    """
    import tempfile

    from huggingface_hub import HfApi

    hub = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _write(model, place, name, title, description, license)
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=place))

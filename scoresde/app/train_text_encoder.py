"""`--mode train_text_encoder`: from a configuration to a trained encoder of captions in a folder.

The run is one as `--mode train` makes it, of another kind of model.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde import condition, plots
from scoresde._files import write_bytes
from scoresde.app.config import as_text_encoder, load_config, override
from scoresde.app.device import choose_device
from scoresde.app.flags import TrainTextEncoderFlags
from scoresde.app.parts import Prepared, captions
from scoresde.app.run import Kind, Run
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import run_name
from scoresde.app.training_run import train_in
from scoresde.data.arrays import ArrayData
from scoresde.metrics.retrieval import retrieval_at_1
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.models.text_encoder import captions as words_of
from scoresde.text import Vocabulary
from scoresde.training import leave_world
from sde_configs import build

MEASURED = 2000  # samples at most among which captions are sought at a checkpoint
SHOWN = 12  # pairs in the picture


def train_text_encoder(flags: TrainTextEncoderFlags, overrides: Sequence[str]) -> int:
    """Trains the text encoder that flags and overrides ask for; returns the exit status."""
    folder = RunFolder(Path(flags.workdir or f"runs/{run_name(None, flags.config)}-text"))
    config = as_text_encoder(load_config(None, flags.config))
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    status = train_in(folder, config, choose_device(flags.device), TextEncoderKind())
    leave_world()
    return status


@final
class TextEncoderKind(Kind):
    """A run that trains a text encoder."""

    def prepare(
        self, folder: RunFolder, config: ConfigDict, data: ArrayData, held_out: ArrayData | None, device: torch.device
    ) -> Prepared:
        """The data with the words of their captions; the vocabulary is that of the training samples."""
        network = build.build_text_encoder(config, data).text
        vocabulary, length = Vocabulary(network.words), network.max_length
        ids, mask = vocabulary.ids(data.texts, length)
        too_long = sum(vocabulary.tokenise(text, length).length > length for text in data.texts)
        if too_long:
            print(
                f"{too_long} of {len(data.texts)} captions have more than {length} words and are cut; "
                "--config.network.max_length=MORE keeps them whole",
                file=sys.stderr,
            )
        return Prepared(
            _with_words(data, ids, mask), None if held_out is None else _with_words(held_out, ids, mask), {}
        )

    def build_model(self, config: ConfigDict, data: ArrayData) -> ContrastiveTextModel:
        return build.build_text_encoder(config, data)

    def measure(self, run: Run, held_out: ArrayData) -> dict[str, Any]:
        """How often held-out samples and captions find each other by the averaged weights."""
        some = _first(held_out, MEASURED)
        model = run.trainer.model
        with run.trainer.average.applied(model):
            found = retrieval_at_1(model, some.values[:], *words_of(some.conditions(slice(None))))
        return {
            "held_out_caption_at_1": found.caption,
            "held_out_sample_at_1": found.sample,
            "retrieval_group": found.group,
        }

    def complete(self, run: Run) -> None:
        """Nothing is measured."""

    def draw(self, run: Run) -> None:
        """Similarities of held-out samples and captions that differ, by the averaged weights."""
        data = run.data if run.held_out is None else run.held_out
        some = _first(data, MEASURED)
        texts = captions(some)
        places = [texts.index(text) for text in list(dict.fromkeys(texts))[:SHOWN]]
        shown = some.select(torch.tensor(places, device=some.values.device))
        model = run.trainer.model
        with run.trainer.average.applied(model), model.eval_mode(), torch.no_grad():
            cond = condition.to(shown.conditions(slice(None)), model.device)
            images, vectors, _ = model.embed(shown.values[:].to(model.device), cond)
        if run.leader:
            raw = shown.values[:].cpu().float()
            unit = run.info.to_unit(raw[:, :3] if raw.shape[1] >= 3 else raw[:, :1]) if raw.ndim == 4 else None
            figure = plots.similarities((vectors @ images.mT).cpu(), captions(shown), unit)
            picture = plots.image_of(figure, dpi=120)
            write_bytes(run.folder.demo(run.trainer.step_number), plots.png_bytes(picture))

    def finish(self, run: Run) -> str:
        place = shlex.quote(str(run.folder.path))
        return f"train with it: python main.py --mode train --config.data.text_encoder={place} --workdir NEW"


def _with_words(data: ArrayData, ids: Tensor, mask: Tensor) -> ArrayData:
    """Data whose only condition is their captions, as numbers of words."""
    assert isinstance(data.cond, Mapping)
    return replace(data, cond={"text": data.cond["text"]}, table={"ids": ids, "mask": mask})


def _first(data: ArrayData, count: int) -> ArrayData:
    """The first samples of a data set."""
    return data.select(torch.arange(min(count, len(data)), device=data.values.device))

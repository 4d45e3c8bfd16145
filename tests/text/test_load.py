"""What is no text encoder is answered by what would be."""

from __future__ import annotations

import pytest

from scoresde import MLP, VPSDE, NetworkScoreModel, NoiseParametrization, UsageError, save_model
from scoresde.text import open_text_encoder

NEED = (
    r"need a checkpoint of --mode train_text_encoder \(.safetensors\), a folder of BERT, CLIP or T5 that transformers "
    r"saved, 'minilm', or 'hf:NAME' of Hugging Face's hub"
)


@pytest.mark.parametrize("given", ["", "hf:", "nothing", "nothing.safetensors", "mini", "{folder}"])
def test_what_it_takes_is_listed(given, tmp_path):
    given = given.format(folder=tmp_path)
    with pytest.raises(UsageError, match=f"text encoder '{given}': {NEED}"):
        open_text_encoder(given)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    path = tmp_path / "score.safetensors"
    save_model(NetworkScoreModel(MLP(2, width=4, depth=1), VPSDE(), NoiseParametrization(), (2,)), path)
    with pytest.raises(UsageError, match=r"model='text_encoder': .* holds the models score"):
        open_text_encoder(str(path))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("scoresde.text.pretrained.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"text encoder 'minilm': needs transformers; pip install 'scoresde\[text\]'"):
        open_text_encoder("minilm")

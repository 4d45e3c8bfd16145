"""A text encoder names what it cannot be trained with, and comes back from a file."""

from __future__ import annotations

import pytest
import torch

from scoresde import MLP, UsageError, load_model, models_in, save_model
from scoresde.checkpoint import load
from scoresde.models import ContrastiveTextModel
from scoresde.networks import ContrastiveNetwork, ImageEncoder
from scoresde.text import OwnTextEncoder, open_text_encoder
from tests.text import captioned

NEED = r"a dict of 'ids' \(B, L\) and 'mask' \(B, L\)"


def cond(**parts):
    return {"ids": torch.tensor([[2, 3], [4, 0]]), "mask": torch.tensor([[True, True], [True, False]])} | parts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, f"cond: no condition; .*{NEED}"),
        (torch.tensor([1, 2]), f"cond: a tensor .*{NEED}"),
        ({"text": torch.tensor([1, 2])}, rf"cond: cond\['text'\] .*{NEED}"),
        (cond(label=torch.tensor([1, 2])), f"cond: .*{NEED}"),
        (cond(mask=torch.ones(2, 3, dtype=torch.bool)), f"cond: .*{NEED}"),
        (cond(mask=torch.ones(2, 2)), r"cond\['mask'\]: a tensor \(float32, \(2, 2\)\); need booleans"),
        (cond(ids=torch.ones(2, 2)), r"cond\['ids'\]: .*; need whole numbers from 0 to 14, 12 at most for each"),
        (cond(ids=torch.tensor([[2, 15], [0, 1]])), r"cond\['ids'\]: numbers from 0 to 15; need whole numbers"),
        (cond(ids=torch.tensor([[2, -1], [0, 1]])), r"cond\['ids'\]: numbers from -1 to 2; need whole numbers"),
        (
            {"ids": torch.zeros(2, 13, dtype=torch.long), "mask": torch.zeros(2, 13, dtype=torch.bool)},
            r"cond\['ids'\]: a tensor \(int64, \(2, 13\)\); need whole numbers from 0 to 14, 12 at most",
        ),
    ],
)
def test_conditions_that_are_no_captions_are_named(given, said):
    with pytest.raises(UsageError, match=said):
        captioned.model().check_cond(given)


def test_captions_fit():
    captioned.model().check_cond(cond())


def test_other_networks_and_shapes_are_named():
    with pytest.raises(UsageError, match="network of MLP: need a ContrastiveNetwork"):
        ContrastiveTextModel(MLP(2), (2,))
    network = ContrastiveNetwork(captioned.model().text, ImageEncoder(3))
    with pytest.raises(UsageError, match=r"shape=\(1, 10, 10\): the image encoder takes 3 channels and 2 sizes"):
        ContrastiveTextModel(network, (1, 10, 10))


def test_samples_are_seen_in_the_units_of_the_model():
    """Whole numbers and the same numbers in float32 give the same."""
    model = captioned.model().double()
    raw = torch.randint(0, 256, (2, 1, 10, 10), dtype=torch.uint8)
    ours = model.embed(raw, cond()).images
    direct = model.network((raw.double() - 127.5) / 127.5, **cond()).images
    torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-12)


def test_a_file_gives_back_the_encoder(tmp_path):
    model = captioned.model()
    path = tmp_path / "text.safetensors"
    save_model(model, path)
    assert models_in(path) == {"text_encoder": "text_encoder"}
    encoder = open_text_encoder(str(path))
    found = load(path)
    assert encoder.digest == found.digest
    ours, again = (e.encode(captioned.TEXTS) for e in (OwnTextEncoder(model, ""), encoder))
    assert torch.equal(ours["tokens"], again["tokens"])
    assert torch.equal(ours["mask"], again["mask"])
    back = found.text_encoder()
    raw, _ = captioned.images(2)
    assert torch.equal(back.embed(raw, cond()).images, model.embed(raw, cond()).images)


def test_a_model_of_another_kind_is_named(tmp_path):
    path = tmp_path / "text.safetensors"
    save_model(captioned.model(), path)
    with pytest.raises(UsageError, match=r"is a text encoder, not a score model; load it with text\.open_text_encoder"):
        load_model(path, name="text_encoder")

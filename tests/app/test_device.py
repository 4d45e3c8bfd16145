"""Which device, and how many threads."""

from __future__ import annotations

import pytest
import torch

from scoresde import UsageError
from scoresde.app.device import SMALL_BATCH, choose_device, choose_threads, fast_bfloat16


@pytest.fixture
def devices(monkeypatch):
    """Lets torch see so many CUDA devices."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_auto_is_cuda_where_there_is_any(devices):
    devices(0)
    assert choose_device("auto") == torch.device("cpu")
    devices(2)
    assert choose_device("auto") == torch.device("cuda")


def test_a_device_is_chosen_by_name(devices):
    devices(2)
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", "mps", "CPU", ""])
def test_a_name_that_is_no_device_is_named(devices, name):
    devices(2)
    with pytest.raises(UsageError, match=rf"device='{name}': need auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (2, "cuda:2"), (0, "cuda:99")])
def test_a_device_that_is_not_there_is_named(devices, count, name):
    devices(count)
    with pytest.raises(UsageError, match=rf"device='{name}': torch sees {count} CUDA devices here; use --device cpu"):
        choose_device(name)


def test_small_batches_take_one_thread_unless_the_user_says_how_many(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    choose_threads(1)
    assert not chosen
    monkeypatch.delenv("OMP_NUM_THREADS")
    choose_threads(SMALL_BATCH + 1)
    assert not chosen
    choose_threads(SMALL_BATCH)
    assert chosen == [1]


def test_a_device_without_bfloat16_is_known(monkeypatch):
    for names, fast in ((), False), (("avx512_bf16",), True), (("amx_tile",), True):
        for name in ("avx512_bf16", "amx_tile"):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda own=name, names=names: own in names)
        assert fast_bfloat16(torch.device("cpu")) == fast
    for known in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, known=known: known)
        assert fast_bfloat16(torch.device("cuda")) == known

"""Which device to compute on, and with how many threads."""

from __future__ import annotations

import os

import torch

from scoresde.errors import require

SMALL_BATCH = 2**14  # values in a batch: 256 images of 8x8


def choose_device(name: str) -> torch.device:
    """auto (CUDA if there is any), cpu, cuda or cuda:N.

    Raises:
        UsageError: for another name, or a device that is not there.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    kind, _, index = name.partition(":")
    require(
        kind in ("cpu", "cuda") and (not index or (kind == "cuda" and index.isdigit())),
        f"device={name!r}: need auto, cpu, cuda or cuda:N",
    )
    require(
        kind == "cpu" or int(index or 0) < available,
        f"device={name!r}: torch sees {available} CUDA devices here; use --device cpu",
    )
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, as far as torch says so."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    known = [check() for check in checks if check is not None]
    return device.type != "cpu" or not known or any(known)


def choose_threads(batch_values: int) -> None:
    """One thread for batches of few values, where more threads mostly wait for each other.

    On two idle cores a second thread makes the default run a third faster; with one of them busy, four times slower.
    OMP_NUM_THREADS, where it is set, decides instead.
    """
    if batch_values <= SMALL_BATCH and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

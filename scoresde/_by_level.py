"""A number that was measured at some noise levels, and is known between them."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.sde import Level

Values = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A number for each level, or several."""


def check_by_level(log_snr: tuple[float, ...], values: Values, name: str) -> None:
    """Raises `UsageError` unless log_snr rises and there are numbers >= 0 for each of its levels, at least 2.

    Args:
        log_snr: of the levels.
        values: what was measured.
        name: of the values, as in "share of MeasuredVariance".
    """
    levels = torch.tensor(log_snr, dtype=torch.float64)
    measured = torch.tensor(values, dtype=torch.float64)
    require(
        len(levels) == len(measured) >= 2 and bool(levels.isfinite().all()) and bool((levels.diff() > 0).all()),
        f"log_snr, {name}: have {len(levels)} and {len(measured)} numbers; need as many of both, at least 2, and "
        "log_snr rising",
    )
    require(
        bool((measured >= 0).all()) and bool(measured.isfinite().all()),
        f"{name}: holds a number that is negative or not finite; has training diverged?",
    )


def interpolate(log_snr: tuple[float, ...], values: Values, level: Level) -> Tensor:
    """The values at levels: linear in the log-SNR between known ones, and beyond both ends the nearest ones.

    Of the shape of the levels; several values of a level are the last dimension.
    """
    x = level.log_snr
    known, measured = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in (log_snr, values))
    right = torch.searchsorted(known, x.contiguous()).clamp(1, len(known) - 1)
    left = right - 1
    weight = ((x - known[left]) / (known[right] - known[left])).clamp(0, 1)
    weight = weight.reshape(weight.shape + (1,) * (measured.ndim - 1))
    return measured[left] + weight * (measured[right] - measured[left])

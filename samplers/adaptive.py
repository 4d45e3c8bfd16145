"""Dormand and Prince's order-5 method by torchdiffeq, with an end in any case and errors that name their cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from scoresde.errors import UsageError, require

MAX_EVALUATIONS = 10_000
REMEDY = "raise rtol and atol, or take a number of steps, as Heun() does: the denoiser may have jumps"
LEAST_TOLERANCE = 20  # in units of the rounding of the state's type


def check_tolerances(rtol: float, atol: float, dtype: torch.dtype = torch.float64) -> None:
    """Raises `UsageError` for tolerances that are not positive, or that a state of this type cannot resolve."""
    require(rtol > 0 and atol > 0, f"rtol={rtol}, atol={atol}: both must be positive")
    least = LEAST_TOLERANCE * torch.finfo(dtype).eps
    require(
        max(rtol, atol) >= least,
        f"rtol={rtol:g}, atol={atol:g}: rounding in {str(dtype).removeprefix('torch.')} is larger; need at least "
        f"{least:.0e} for one of them, or a float64 model",
    )


@final
class BoundedEvaluations:
    """Counts the evaluations of an adaptive solver, and ends one that would never end by itself.

    Args:
        name: the caller, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0

    def add(self, x0_hat: Tensor, noise_level: Tensor) -> None:
        """Takes note of an evaluation.

        Raises:
            UsageError: for one too many, or a result that is not finite.
        """
        self.count += 1
        require(
            bool(x0_hat.isfinite().all()),
            f"model: its denoiser is not finite at noise level {float(noise_level.max()):.3g}; has training diverged?",
        )
        require(
            self.count <= MAX_EVALUATIONS,
            f"{self.name}: has not arrived after {MAX_EVALUATIONS:,} evaluations; {REMEDY}",
        )


def dormand_prince(
    velocity: Callable[[Tensor, Any], Any],
    y: Any,
    ends: Tensor,
    norm: Callable[[Any], Tensor],
    rtol: float,
    atol: float,
) -> Any:
    """Integrates dy/du = velocity(u, y) from the first of two ends to the second; y is a tensor or several.

    Raises:
        UsageError: if the steps become too small for the type of u.
    """
    from torchdiffeq import odeint

    options = {"norm": norm, "step_t": ends[1:], "dtype": torch.float64}
    try:
        path = odeint(velocity, y, ends, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # torchdiffeq's word for a step that is lost to rounding
        raise UsageError(f"rtol={rtol:g}, atol={atol:g}: no step is small enough ({error}); {REMEDY}") from error
    return path[-1] if isinstance(path, Tensor) else tuple(part[-1] for part in path)

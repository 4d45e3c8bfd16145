"""Distance between two sets of points along random lines."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require


def sliced_wasserstein(first: Tensor, second: Tensor, num_projections: int = 200, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of samples `(N, *)` and `(M, *)`, in their units (Bonneel et al. 2015).

    The square is the mean over random directions of the squared Wasserstein-2 distance of the projections,
    int_0^1 (F^-1 - G^-1)^2 of their quantiles, exact for the two step functions. Two sets from one distribution also
    have a distance above 0, which falls with the root of their size: compare with that of real data.
    """
    for name, x in (("first", first), ("second", second)):
        require(
            x.ndim >= 2 and len(x) >= 1 and bool(x.isfinite().all()),
            f"{name} of shape {tuple(x.shape)}: need finite samples (N, ...)",
        )
    require(
        first.shape[1:] == second.shape[1:],
        f"first of shape {tuple(first.shape)}, second of shape {tuple(second.shape)}: need samples of one shape",
    )
    x, y = (part.flatten(1).double().cpu() for part in (first, second))
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], num_projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    x = (x @ directions).sort(0).values
    y = (y @ directions).sort(0).values
    ends = torch.cat([torch.arange(1, len(part) + 1, dtype=torch.float64) / len(part) for part in (x, y)]).unique()
    width = ends.diff(prepend=ends.new_zeros(1))
    middle = ends - width / 2
    at = [part[(middle * len(part)).long().clamp(max=len(part) - 1)] for part in (x, y)]
    return ((at[0] - at[1]).square() * width[:, None]).sum(0).mean().sqrt().item()

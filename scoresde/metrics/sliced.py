"""Distance between two sets of points along random lines."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.metrics.resampling import Statistic

PROJECTIONS = 200


def sliced_wasserstein(first: Tensor, second: Tensor, num_projections: int = PROJECTIONS, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of samples `(N, *)` and `(M, *)`, in their units (Bonneel et al. 2015).

    The square is the mean over random directions of the squared Wasserstein-2 distance of the projections,
    int_0^1 (F^-1 - G^-1)^2 of their quantiles, exact for the two step functions. Two sets from one distribution also
    have a distance above 0, which falls with the root of their size: compare with that of real data.
    """
    one = torch.ones(1, dtype=torch.float64)
    groups = tuple(torch.zeros(len(part), dtype=torch.long) for part in (first, second))
    return sliced_distance(first, second, (groups[0], groups[1]), num_projections, seed)(one, one)


def sliced_distance(
    first: Tensor,
    second: Tensor,
    groups: tuple[Tensor, Tensor],
    num_projections: int = PROJECTIONS,
    seed: int = 0,
) -> Statistic:
    """`sliced_wasserstein`, of which groups of the samples are taken."""
    for name, x in (("first", first), ("second", second)):
        require(
            x.ndim >= 2 and len(x) >= 1 and bool(x.isfinite().all()),
            f"{name} of shape {tuple(x.shape)}: need finite samples (N, ...)",
        )
    require(
        first.shape[1:] == second.shape[1:],
        f"first of shape {tuple(first.shape)}, second of shape {tuple(second.shape)}: need samples of one shape",
    )
    flat = [part.flatten(1).double().cpu() for part in (first, second)]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(flat[0].shape[1], num_projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    projected = [(directions.mT @ part.mT).sort(1) for part in flat]
    values = [part.values for part in projected]
    members = [group[part.indices] for group, part in zip(groups, projected, strict=True)]

    def distance(*taken: Tensor) -> float:
        alike = all(bool(times.all()) for times in taken)  # then ends are those of the first direction
        ends = []
        for times, member in zip(taken, members, strict=True):
            mass = times[member[:1] if alike else member].cumsum(1)
            ends.append(mass / mass[:, -1:])
        joint = torch.cat(ends, 1).sort(1).values
        width = joint.diff(dim=1, prepend=joint.new_zeros(len(joint), 1))
        middle = joint - width / 2
        at = []
        for value, end in zip(values, ends, strict=True):
            index = torch.searchsorted(end, middle).clamp(max=value.shape[1] - 1)
            at.append(value.gather(1, index.expand(num_projections, -1)))
        return ((at[0] - at[1]).square() * width).sum(1).mean().sqrt().item()

    return distance

"""Distance between two sets of features as if they were Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.metrics.moments import Moments


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of features `(N, F)` and `(M, F)` (Heusel et al. 2017, eq. 6).

    The distance is biased upwards for few samples: compare sets of equal size.
    """
    for name, features in (("first", first), ("second", second)):
        require(
            features.ndim == 2 and len(features) >= 2,
            f"{name} of shape {tuple(features.shape)}: need (samples, features) with two samples or more",
        )
    require(
        first.shape[1] == second.shape[1],
        f"first of shape {tuple(first.shape)}, second of shape {tuple(second.shape)}: need the same number of features",
    )
    roots = []
    traces = 0.0
    for features in (first.double(), second.double()):
        centered = (features - features.mean(0)) / (len(features) - 1) ** 0.5
        # R^T R is the covariance, which is all that is needed of its root
        roots.append(torch.linalg.qr(centered, mode="r").R)
        traces += centered.square().sum().item()
    means = [features.double().mean(0) for features in (first, second)]
    return _distance(means, roots, traces)


def frechet_of_moments(first: Moments, second: Moments) -> float:
    """`frechet_distance` of features of which the moments are known.

    Variances below 1e-16 of the largest are rounding here, where those of the features themselves are not.
    """
    roots = []
    traces = 0.0
    for moments in (first, second):
        covariance = moments.covariance
        traces += covariance.trace().item()
        values, vectors = torch.linalg.eigh(covariance)
        roots.append(values.clamp(min=0).sqrt()[:, None] * vectors.mT)
    return _distance([first.mean, second.mean], roots, traces)


def _distance(means: Sequence[Tensor], roots: Sequence[Tensor], traces: float) -> float:
    """The distance; the trace of the root is the sum of the singular values of C_1^(1/2) C_2^(1/2)."""
    cross = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum().item()
    return (means[0] - means[1]).square().sum().item() + traces - 2 * cross

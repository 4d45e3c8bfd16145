"""Distance between two sets of features as if they were Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) of features `(N, F)` and `(M, F)` (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the singular values of C_1^(1/2) C_2^(1/2), so no root of a non-symmetric matrix
    is needed. The distance is biased upwards for few samples: compare sets of equal size.
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
    first = first.double()
    second = second.double()
    roots = []
    traces = 0.0
    for features in (first, second):
        centered = (features - features.mean(0)) / (len(features) - 1) ** 0.5
        # R^T R is the covariance, which is all that is needed of its root
        roots.append(torch.linalg.qr(centered, mode="r").R)
        traces += centered.square().sum().item()
    cross = torch.linalg.svdvals(roots[0] @ roots[1].mT).sum().item()
    return (first.mean(0) - second.mean(0)).square().sum().item() + traces - 2 * cross

"""The Inception score: how sure a classifier is of each sample, and how varied its classes are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scoresde.metrics.resampling import Statistic


def inception_score(logits: Iterable[Tensor], groups: Tensor) -> Statistic:
    """exp of the mean Kullback-Leibler divergence of p(y | x) from its mean over samples (Salimans et al. 2016).

    It is between 1 and the number of classes. Published scores are means over ten subsets, which are lower.

    Args:
        logits: a stream of `(n, C)` each; together `(N, C)`.
        groups: of the samples, `(N,)`.

    Returns:
        The score, of which groups are taken; it does not depend on a second set.
    """
    member = one_hot(groups).double()
    first = 0
    marginals = torch.zeros(())
    negative_entropies = torch.zeros(())
    for chunk in logits:
        own = member[first : first + len(chunk)].mT
        first += len(chunk)
        log_p = chunk.double().log_softmax(1)
        marginals = marginals + own @ log_p.exp()
        negative_entropies = negative_entropies + own @ (log_p.exp() * log_p).sum(1)
    sizes = member.sum(0)

    def score(taken: Tensor, _: Tensor) -> float:
        count = taken @ sizes
        marginal = taken @ marginals / count
        return (taken @ negative_entropies / count - torch.special.xlogy(marginal, marginal).sum()).exp().item()

    return score

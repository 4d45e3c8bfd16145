"""A mixture with labels, all of whose guided scores are known."""

from __future__ import annotations

import torch

from scoresde import ExactLabelledModel, GaussianMixture
from tests.analytic import mixture


def labelled(sde, device="cpu", shape=(2,)):
    """Five correlated components in three classes."""
    first, second = mixture(device, shape), mixture(device, shape)
    both = GaussianMixture(
        torch.cat([first.weights, second.weights[:2]]),
        torch.cat([first.means, -1.5 * second.means[:2]]).reshape(5, *shape),
        torch.cat([covariances(first), 0.5 * covariances(second)[:2]]),
    )
    return ExactLabelledModel(both, torch.tensor([0, 1, 2, 0, 1], device=device), sde)


def covariances(target):
    """The matrices of a mixture's components."""
    rotations = target.rotations
    return rotations.mT @ (target.variances[:, :, None] * rotations)


def powered_score(model, x_t, level, cond, w):
    """The gradient of (1 - w) log p_t(x) + w log p_t(x | y), by autograd."""
    x = x_t.detach().clone().requires_grad_()
    joint = torch.stack([t.log_prob(x, level.alpha, level.sigma) for t in model.targets], 1)
    whole = model.mixture.log_prob(x, level.alpha, level.sigma)
    own = joint.gather(1, cond[:, None])[:, 0]
    return torch.autograd.grad(((1 - w) * whole + w * own).sum(), x)[0]

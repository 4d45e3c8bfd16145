"""A mixture with labels, all of whose guided scores are known."""

from __future__ import annotations

import functools

import torch

from scoresde import (
    VPSDE,
    ExactLabelledModel,
    GaussianMixture,
    MLPClassifier,
    NoisyClassifier,
    TrainingOptions,
    fit,
)
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


def labelled_samples(model, num_samples, seed=0):
    """Clean samples of an exact model, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(model.probabilities, num_samples, replacement=True, generator=generator)
    x = torch.empty(num_samples, *model.shape, dtype=model.dtype)
    for label, target in enumerate(model.targets):
        own = labels == label
        x[own] = target.sample(int(own.sum()), generator)
    return x, labels


@functools.cache
def trained_classifier():
    """A small classifier of `labelled`, under the VP SDE, trained in seconds."""
    x, labels = labelled_samples(labelled(VPSDE()), 20_000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLPClassifier(2, 3, width=48, depth=2)
    classifier = NoisyClassifier(network, VPSDE(), (2,), 3, sigma_data=x.std().item())
    options = TrainingOptions(num_steps=600, batch_size=256, lr=5e-3, ema_decay=0.98)
    return fit(classifier, x.float(), labels, options=options, progress=False)

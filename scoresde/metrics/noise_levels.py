"""How well a classifier of noisy samples tells classes apart, by noise level."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde._batches import batches, choose_batch_size
from scoresde.classification import classes
from scoresde.data.arrays import ArrayData
from scoresde.models.classifier import NoisyClassifier
from scoresde.noise import BatchNoise


class LevelScores(NamedTuple):
    """What a classifier reaches at each of some noise levels, `(n,)` each, float64 on the host.

    Attributes:
        noise_levels: sigma / alpha.
        losses: the mean of -log p(y | x_t), in nats; log(num_classes) for a classifier that knows nothing.
        accuracies: the share of the samples whose class is the likeliest.
    """

    noise_levels: Tensor
    losses: Tensor
    accuracies: Tensor


@torch.no_grad()
def score_by_noise_level(
    classifier: NoisyClassifier, data: ArrayData, num_levels: int = 16, batch_size: int | None = None
) -> LevelScores:
    """Scores a classifier on labelled data at noise levels evenly spaced by ratio over its SDE.

    Each sample gets the same noise at every level and in every call, scaled to the level.

    Args:
        classifier: the classifier, in evaluation mode.
        data: labelled samples, in the classifier's codec.
        num_levels: how many noise levels.
        batch_size: samples at a time; by default as many as need little memory.
    """
    device = classifier.device
    low, high = classifier.noise_range()
    noise_levels = torch.logspace(0, 1, num_levels, base=high / low, dtype=torch.float64) * low
    levels = classifier.sde.at_noise_level(noise_levels)
    totals = torch.zeros(2, num_levels, dtype=torch.float64)
    size = choose_batch_size(batch_size, classifier.shape, device)
    for part in batches(len(data), size):
        x_0 = classifier.codec.encode(data.values[part].to(device), classifier.dtype)
        labels = classes(data.labels)[part].to(device)
        noise = BatchNoise(0, 0, len(data), torch.arange(part.start, part.stop, device=device))
        eps = noise.normal("eps", classifier.shape, classifier.dtype)
        for k in range(num_levels):
            level = levels[k].to(device, classifier.dtype)
            logits = classifier.logits(level.alpha * x_0 + level.sigma * eps, level)
            totals[0, k] += F.cross_entropy(logits, labels, reduction="sum").item()
            totals[1, k] += (logits.argmax(1) == labels).sum().item()
    losses, accuracies = totals / len(data)
    return LevelScores(noise_levels, losses, accuracies)

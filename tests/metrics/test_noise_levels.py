"""Scores of classifiers by noise level, against a classifier whose every answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scoresde import VESDE, VPSDE, NoisyClassifier, Scaling
from scoresde.data import ArrayData
from scoresde.metrics import score_by_noise_level


class TwoPoints(nn.Module):
    """The exact classifier of -1 (class 0) and 1 (class 1) in one dimension: the log odds are 2 alpha x_t / sigma^2.

    It is given x_t / std(x_t) and log(sigma / alpha) / 4.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, c_noise):
        noise_level = torch.exp(4 * c_noise)[:, None]
        u = x * torch.sqrt(1 + noise_level**2)  # x_t / alpha
        odds = 2 * u / noise_level**2
        return torch.cat([-odds / 2, odds / 2], 1)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_the_accuracy_is_the_share_of_noise_that_does_not_cross_over(sde):
    labels = torch.arange(4000) % 2
    codec = Scaling(5.0, 2.0)
    data = ArrayData((2.0 * labels - 1)[:, None] * 2 + 5, labels, codec)
    classifier = NoisyClassifier(TwoPoints(), sde, (1,), 2, codec=codec)
    scores = score_by_noise_level(classifier, data, num_levels=7)
    low, high = classifier.noise_range()
    assert scores.noise_levels.tolist() == pytest.approx([low * (high / low) ** (k / 6) for k in range(7)], rel=1e-9)
    for r, loss, accuracy in zip(*(part.tolist() for part in scores), strict=True):
        right = 0.5 * (1 + math.erf(1 / (r * math.sqrt(2))))
        assert accuracy == pytest.approx(right, abs=0.03)  # four standard errors
        assert (loss < 1e-6) if r < 0.1 else (loss < math.log(2) + 0.02)
    assert scores.losses[-1] == pytest.approx(math.log(2), abs=0.02)


def test_scores_do_not_depend_on_the_batch_size():
    labels = torch.arange(50) % 2
    data = ArrayData((2.0 * labels - 1)[:, None], labels)
    classifier = NoisyClassifier(TwoPoints(), VPSDE(), (1,), 2)
    first, second = (score_by_noise_level(classifier, data, batch_size=size) for size in (7, 50))
    assert torch.equal(first.accuracies, second.accuracies)
    torch.testing.assert_close(first.losses, second.losses)

"""Where guidance acts: what x_t tells of the class, by the difference of two denoisers and by their errors."""

from __future__ import annotations

import pytest
import torch

from scoresde import EDMSDE, VPSDE, ClassifierFreeGuidance
from scoresde.app.figures import guidance
from scoresde.data import ArrayData
from scoresde.score_model import WrappedModel
from tests.guidance.labelled import labelled, labelled_samples

COUNT = 4000
NOISE_LEVELS = torch.logspace(-1.5, 1.5, 30, dtype=torch.float64)


def measured(sde):
    """The gains of an exact model's class, its information by them, and that of its posteriors, with the deviation."""
    model = labelled(sde)
    x, labels = labelled_samples(model, COUNT)
    data = ArrayData(x, labels)
    without, given = (ClassifierFreeGuidance(model, w) for w in (0.0, 1.0))
    level = sde.at_noise_level(NOISE_LEVELS)
    found = guidance.gains(without, given, data, level, 1000)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    told = []
    for k in range(len(level)):
        x_t = level.alpha[k] * x + level.sigma[k] * eps
        ratio = model.log_posterior(x_t, level[k]) - model.probabilities.log()
        told.append(ratio.gather(1, labels[:, None])[:, 0])
    told = torch.stack(told)
    return level, found, told.mean(1), told.std(1) / COUNT**0.5


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=["vp", "edm"])
def test_the_integrated_difference_is_the_information_of_the_exact_posteriors(sde):
    level, found, truth, deviation = measured(sde)
    told = guidance.information(level.noise_level, found.difference)
    assert truth.max() > 0.5
    assert (told - truth).abs().max() < 5 * deviation.max() + 0.01  # and that of the integral


def test_exact_estimates_save_as_much_as_they_differ():
    level, found, truth, _ = measured(VPSDE())
    told = guidance.information(level.noise_level, found.saved)
    assert (told - truth).abs().max() < 0.1
    seen = found.difference > 0.1 * found.difference.max()
    torch.testing.assert_close(found.saved[seen], found.difference[seen], rtol=0.15, atol=0)


class Shifted(WrappedModel):
    """A model's estimate, moved by 0.5 along the first axis."""

    def denoise_at(self, x_t, level, cond=None):
        return self.model.denoise_at(x_t, level, cond) + torch.tensor([0.5, 0.0])


def test_a_wrong_difference_saves_nothing():
    model = labelled(VPSDE())
    x, labels = labelled_samples(model, COUNT)
    level = model.sde.at_noise_level(torch.tensor([0.1, 1.0], dtype=torch.float64))
    found = guidance.gains(model, Shifted(model), ArrayData(x, labels), level, COUNT)
    torch.testing.assert_close(found.difference, torch.full_like(found.difference, 0.25))
    assert (found.saved < -0.2).all()


def test_information_of_a_known_rate():
    """A difference of r^2 / (1 + r^2)^2 has the integral 1 / (2 (1 + r^2)) of its rate."""
    r = torch.logspace(-2, 3, 400, dtype=torch.float64)
    square = r.square()
    told = guidance.information(r, square * square / (1 + square).square())
    torch.testing.assert_close(told, 0.5 / (1 + square), rtol=0, atol=1e-4)

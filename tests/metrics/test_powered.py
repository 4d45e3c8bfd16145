"""The powered distribution of a mixture: its density, its draws, and distances from it."""

from __future__ import annotations

import pytest
import torch

from scoresde import VPSDE, ExactLabelledModel
from scoresde.data import labelled_mixture
from scoresde.errors import UsageError
from scoresde.metrics import PoweredTarget
from scoresde.sde import Level
from tests.guidance.labelled import labelled

COUNT = 20_000


def exact():
    return ExactLabelledModel(*labelled_mixture(), VPSDE())


def by_importance(model, label, w):
    """Mean and second moments of p(x)^(1-w) p(x|y)^w, by draws of p(x|y) with weights p(y|x)^(w-1)."""
    x = model.targets[label].sample(200_000, torch.Generator().manual_seed(0))
    weight = ((w - 1) * model.log_posterior(x, Level.clean(x.dtype)[0])[:, label]).softmax(0)
    return weight @ x, x.T @ (weight[:, None] * x)


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("label", [0, 2])
def test_draws_are_those_of_weighted_samples_of_the_class(w, label):
    mean, second = by_importance(exact(), label, w)
    x = PoweredTarget(exact(), label, w, 10, points=401).draw(COUNT, 0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)  # 5 errors of 20,000 draws
    torch.testing.assert_close(x.T @ x / COUNT, second, rtol=0, atol=0.06)


def test_the_density_is_normalised_and_that_of_the_class_without_guidance():
    target = PoweredTarget(exact(), 1, 1.0, 10, points=601)
    cell = target.axis[1] - target.axis[0]
    assert (target.log_prob.exp().sum() * cell**2).item() == pytest.approx(1, abs=1e-9)
    i, j = 350, 140  # not on the diagonal: a transposed grid would differ
    point = torch.stack([target.axis[i], target.axis[j]])[None]
    one = torch.ones((), dtype=torch.float64)
    expected = exact().targets[1].log_prob(point, one, 0 * one).item()
    assert target.log_prob[i, j].item() == pytest.approx(expected, abs=1e-4)


def test_distances_are_in_those_of_its_own_draws():
    target = PoweredTarget(exact(), 0, 2.0, 2000, points=401)
    own = [target.distance(target.draw(2000, seed)) for seed in range(5, 13)]
    assert 0.7 < sum(own) / len(own) < 1.4
    # of a shift d the squared distance along a line is d^2 cos^2, whose mean over lines in the plane is d^2 / 2
    shifted = target.samples + torch.tensor([0.3, 0.0])
    assert target.distance(shifted) * target.floor == pytest.approx(0.3 / 2**0.5, rel=0.15)  # of 200 lines


def test_only_points_in_the_plane_have_one():
    with pytest.raises(UsageError, match=r"model of samples of shape \(1, 2, 1\): need points in the plane"):
        PoweredTarget(labelled(VPSDE(), shape=(1, 2, 1)), 0, 2.0, 100)

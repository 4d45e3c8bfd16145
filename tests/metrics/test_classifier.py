"""The classifier that judges samples."""

import math

import pytest
import torch

from scoresde import UsageError
from scoresde.data import load
from scoresde.metrics import judge, train_classifier


def test_a_classifier_learns_digits_and_judges_them(device):
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    before = torch.random.get_rng_state()
    classifier = train_classifier(train, num_steps=150)
    assert torch.equal(before, torch.random.get_rng_state())
    x, labels = held_out.all()
    found = judge(classifier, x, labels)
    assert found.agreement > 0.9
    assert found.features.shape == (len(held_out), 64)
    assert judge(classifier, x, labels.roll(1)).agreement < 0.3
    assert math.isnan(judge(classifier, x, None).agreement)
    with pytest.raises(UsageError, match="needs images"):
        train_classifier(load("moons"))

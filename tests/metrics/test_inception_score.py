"""The Inception score of distributions that are known."""

import pytest
import torch

from scoresde.metrics.inception_score import inception_score

ONE = torch.ones(4, dtype=torch.float64)


def score(logits, taken=ONE):
    return inception_score(logits.split(7), torch.arange(len(logits)) % 4)(taken, ONE)


def test_sure_and_even_is_the_number_of_classes_and_ignorant_is_one():
    sure = 100.0 * torch.eye(10).repeat(4, 1)
    assert score(sure) == pytest.approx(10.0)
    assert score(torch.zeros(20, 10)) == pytest.approx(1.0)
    assert score(sure[:1].repeat(20, 1)) == pytest.approx(1.0)


def test_the_definition_written_out_also_of_some_groups():
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    for kept, taken in ((slice(None), ONE), (torch.arange(40) % 4 < 2, torch.tensor([1.0, 1, 0, 0]).double())):
        p = logits[kept].double().softmax(1)
        divergence = (p * (p.log() - p.mean(0).log())).sum(1).mean()
        assert score(logits, taken) == pytest.approx(divergence.exp().item(), rel=1e-10)

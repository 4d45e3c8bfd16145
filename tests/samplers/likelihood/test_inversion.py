"""Data to noise and back, and the noises between two."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import log_prob, slerp, to_data, to_noise
from samplers.likelihood.inversion import inversion
from scoresde import VPSDE, ExactScoreModel
from tests.analytic import mixture


def test_what_became_noise_becomes_the_data_again(device):
    target = mixture(device)
    model = ExactScoreModel(target, VPSDE())
    x = target.sample(50, torch.Generator(device).manual_seed(1))
    errors = []
    for count in (48, 96):
        back = to_data(model, to_noise(model, x, num_evaluations=count), num_evaluations=count)
        errors.append((back - x).square().mean().sqrt().item())
    assert errors[1] < errors[0] / 7  # of order 3 or more
    assert errors[1] < 1e-4


def test_the_noise_is_that_of_the_log_density_whatever_the_batch(device):
    target = mixture(device)
    model = ExactScoreModel(target, VPSDE())
    x = target.sample(50, torch.Generator(device).manual_seed(1))
    latent = to_noise(model, x, batch_size=7)
    torch.testing.assert_close(latent, log_prob(model, x).latent)
    assert latent.std().item() == pytest.approx(1, rel=0.2)  # the prior of VP


def test_each_evaluation_is_reported(device):
    model, told = ExactScoreModel(mixture(device), VPSDE()), []
    x = torch.zeros(5, 2, dtype=torch.float64, device=device)
    for way in (to_noise, to_data):
        told.clear()
        way(model, x, num_evaluations=8, batch_size=3, on_evaluation=lambda: told.append(1))
        assert len(told) == 16  # of two batches


def test_the_table_has_as_many_rows_as_evaluations_and_reads_a_short_history():
    flow = inversion(VPSDE(), 40, 0.7)
    assert len(flow.table) == 40
    assert flow.table.b.shape[1] <= 6
    assert flow.totals.sum().item() == pytest.approx(math.atan(152 / 0.7), rel=0.02)


def test_the_great_circle_keeps_lengths_and_ends(device):
    first, second = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(1)).to(device)
    second = second * (first.flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    way = slerp(first, second, torch.linspace(0, 1, 5, device=device))
    torch.testing.assert_close(way[0], first)
    torch.testing.assert_close(way[-1], second)
    torch.testing.assert_close(
        way.flatten(2).norm(dim=2), first.flatten(1).norm(dim=1).expand(5, -1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(slerp(first, first, torch.tensor([0.3], device=device))[0], first)

"""The noise of measurements: what is added, and how likely it is."""

from __future__ import annotations

import pytest
import torch

from scoresde import UsageError
from scoresde.operators import GaussianNoise, PoissonNoise, as_noise
from scoresde.operators.noise import SMALLEST_RATE
from tests.operators.cases import randn

COUNT = 40_000


@pytest.mark.parametrize("std", [0.2, 3.0])
def test_gaussian_noise_has_its_deviation(std, device):
    """Mean and variance within 5 standard errors of 40,000 draws: level 6e-7 each."""
    clean = randn(4, COUNT // 4).to(device)
    eps = (GaussianNoise(std).add(clean, torch.Generator(device).manual_seed(0)) - clean) / std
    assert abs(eps.mean().item()) < 5 / COUNT**0.5
    assert abs(eps.var().item() - 1) < 5 * (2 / COUNT) ** 0.5


@pytest.mark.parametrize(("gain", "offset"), [(3.0, 1.0), (50.0, 0.5)])
def test_photons_are_counted(gain, offset, device):
    """Whole numbers; mean and variance (a + offset) / gain within 5 standard errors of 40,000 draws each."""
    noise = PoissonNoise(gain, offset)
    for value in (-0.4, 0.0, 2.0):
        clean = torch.full((4, COUNT // 4), value, dtype=torch.float64, device=device)
        y = noise.add(clean, torch.Generator(device).manual_seed(1))
        counts = gain * (y + offset)
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
        variance = (value + offset) / gain
        assert abs(y.mean().item() - value) < 5 * (variance / COUNT) ** 0.5
        squares = (y - value).square()  # whose deviation is found from the sample
        assert abs(squares.mean().item() - variance) < 5 * squares.std().item() / COUNT**0.5
        assert noise.variance(clean[0, 0]).item() == pytest.approx(max(variance, 1 / gain**2), rel=1e-12)


def test_where_nothing_is_expected_nothing_is_counted():
    noise = PoissonNoise(10.0)
    y = noise.add(torch.tensor([-1.0, -1.5]))
    assert y.tolist() == [-1.0, -1.0]
    assert noise.variance(y).tolist() == pytest.approx([0.01, 0.01])  # that of a single count
    assert noise.log_prob(y[None], torch.full((1, 2), -2.0)).isfinite().all()
    below, at = (noise.log_prob(torch.zeros(1, 1), torch.full((1, 1), value)) for value in (-2.0, -1.0))
    assert torch.equal(below, at)
    assert at.item() == pytest.approx(10 * torch.tensor(SMALLEST_RATE).log().item() - SMALLEST_RATE, rel=1e-6)


def test_log_prob_of_gaussian_noise_is_that_of_torch_up_to_a_constant():
    clean, y = randn(5, 2, 3), randn(2, 3, seed=1)
    found = GaussianNoise(0.7).log_prob(y, clean)
    expected = torch.distributions.Normal(clean, 0.7).log_prob(y).sum((1, 2))
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-12, atol=1e-12)


def test_log_prob_of_counts_is_that_of_torch_up_to_a_constant():
    noise = PoissonNoise(20.0, 1.5)
    clean = randn(5, 2, 3).clamp(-1, 1)
    y = noise.add(clean[:1], torch.Generator().manual_seed(0))[0]
    found = noise.log_prob(y, clean)
    counts = (20 * (y + 1.5)).round()
    expected = torch.distributions.Poisson(20 * (clean + 1.5)).log_prob(counts).sum((1, 2))
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-11, atol=1e-11)


def test_noise_repeats_under_a_generator_and_keeps_types(device):
    for noise in (GaussianNoise(0.3), PoissonNoise(10.0)):
        for dtype in (torch.float32, torch.float64):
            clean = torch.zeros(3, 2, dtype=dtype, device=device)
            first, again = (noise.add(clean, torch.Generator(device).manual_seed(2)) for _ in range(2))
            assert torch.equal(first, again)
            assert first.dtype == dtype
    assert torch.equal(GaussianNoise(0.0).add(clean), clean)
    assert GaussianNoise(0.3).variance(clean) == pytest.approx(0.09)


def test_a_number_is_the_deviation_of_gaussian_noise():
    assert as_noise(0.2) == GaussianNoise(0.2)
    photons = PoissonNoise(3.0)
    assert as_noise(photons) is photons


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-0.1), r"std=-0\.1: need a finite number of 0 or more"),
        (lambda: GaussianNoise(float("inf")), "std=inf"),
        (lambda: GaussianNoise(float("nan")), "std=nan"),
        (lambda: PoissonNoise(0.0), r"gain=0\.0: must be positive"),
        (lambda: PoissonNoise(float("inf")), "gain=inf"),
        (lambda: as_noise(-1.0), r"std=-1\.0"),
        (lambda: GaussianNoise(0.0).log_prob(torch.zeros(1, 1), torch.zeros(1, 1)), "noise=0: gives no density"),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()

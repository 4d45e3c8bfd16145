"""The corrections of guided samplers: with them samples are those of the powered distribution."""

from __future__ import annotations

import warnings

import pytest
import torch

from samplers import Ancestral, PredictorCorrector, pilot_corrector, power_phi, sample
from samplers.langevin import MeasuredSnr
from scoresde import VESDE, VPSDE, Autoguidance, ExactScoreModel, Gaussian, UsageError

OWN, WORSE, WEIGHT = 0.25, 1.0, 3.0
POWERED = 1 / (WEIGHT / OWN - (WEIGHT - 1) / WORSE)  # variance of p_worse^(1 - w) p^w, 0.1


def guided(sde, device, weight=WEIGHT, dim=8):
    """Guidance between Gaussians: what it promises is a Gaussian too."""
    model, worse = (
        ExactScoreModel(Gaussian(torch.zeros(dim), v * torch.eye(dim)).to(device), sde) for v in (OWN, WORSE)
    )
    return Autoguidance(model, worse, weight)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_samples_have_the_variance_that_guidance_promises(device, sde):
    """The reverse SDE alone leaves them too narrow."""
    model = guided(sde, device)
    sampler = pilot_corrector(model)
    corrected = sample(model, sampler, 4000)
    alone = sample(model, Ancestral(), 4000, num_steps=300)
    assert corrected.x.var().item() == pytest.approx(POWERED, rel=0.04)
    assert alone.x.var().item() < 0.9 * POWERED
    assert corrected.nfe == 2 * (60 + 59 * sampler.corrector_steps)


def test_a_gaussian_needs_steps_of_its_own_width(device):
    """The noise estimate of N(0, v) has the mean square sigma^2 / v."""
    model = guided(VPSDE(), device, weight=1.0)
    sampler = pilot_corrector(model, corrector_steps=4)
    snr = sampler.snr
    assert isinstance(snr, MeasuredSnr)
    level = model.sde.level(power_phi(model.sde, 60, 2.0, model.sigma_data)[10:-1])  # r < 2
    expected = 0.4 * torch.sqrt(level.alpha**2 * OWN + level.sigma**2) / level.sigma
    torch.testing.assert_close(snr.at(level), expected, rtol=0.06, atol=0)


def test_corrections_are_added_until_they_are_enough(device):
    """Few steps leave much to correct; where even the most corrections are too few, a warning says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = pilot_corrector(guided(VPSDE(), device, 1.0), num_steps=60)
    assert few.corrector_steps == 4
    with pytest.warns(UserWarning, match=r"with 1 corrections a step the mismatch is still \d+\.\d+; take more steps"):
        pilot_corrector(guided(VPSDE(), device, 8.0), num_steps=5, corrector_steps=1)


def test_the_pilots_grid_is_the_samplers_own(device):
    model = guided(VPSDE(), device)
    sampler = PredictorCorrector(snr=MeasuredSnr((0.0, 1.0), (0.3, 0.3)))
    assert torch.equal(sampler.grid(model, 20), power_phi(model.sde, 20, 2.0, model.sigma_data))
    assert len(sampler.grid(model)) == 61
    assert len(PredictorCorrector().grid(model)) == 251


def test_nothing_is_corrected_below_the_lowest_level(device):
    """It counts in deviations of the data."""
    model = guided(VPSDE(), device)
    sampler = pilot_corrector(model, corrector_steps=4, num_samples=64, lowest=0.05)
    assert sampler.lowest == 0.05 * model.sigma_data
    grid = sampler.grid(model)
    above = int((model.sde.noise_level(grid[1:-1]) >= sampler.lowest).sum())
    assert 40 < above < 59
    assert sampler.num_evaluations(model, grid) == 2 * (60 + above * 4)


def test_samples_do_not_depend_on_their_batch(device):
    """As with every table; the pilot alone sizes steps by a batch."""
    model = guided(VPSDE(), device)
    sampler = pilot_corrector(model, num_samples=64)
    together = sample(model, sampler, 8, num_steps=10).x
    apart = sample(model, sampler, 8, num_steps=10, batch_size=3).x
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrector_steps": 0}, "corrector_steps=0: need at least 1"),
        ({"lowest": -1.0}, "lowest=-1.0: need a noise level"),
        ({"num_steps": 2}, "num_steps=2: leaves too few levels to correct"),
        ({"num_samples": 1}, "num_samples=1: need at least 2"),
    ],
)
def test_a_pilot_that_cannot_run_is_refused(device, options, message):
    with pytest.raises(UsageError, match=message):
        pilot_corrector(guided(VPSDE(), device), **options)

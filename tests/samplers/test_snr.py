"""The snr of a corrector, chosen by a pilot run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from samplers import Ancestral, AnnealedLangevin, PredictorCorrector, choose_snr, uniform_log_snr
from samplers.snr import mismatch
from scoresde import VPSDE, CallableScoreModel, ExactScoreModel, Gaussian, ScoreParametrization, UsageError


def gaussian(device):
    return ExactScoreModel(Gaussian(torch.zeros(16), 0.25 * torch.eye(16)).to(device), VPSDE())


def test_an_exact_chain_has_no_mismatch_and_a_bad_one_has(device):
    """Ancestral sampling of a Gaussian in many steps has the right marginals; a large snr adds its square of noise."""
    model, grid = gaussian(device), uniform_log_snr(VPSDE(), 300)
    assert mismatch(model, Ancestral(), grid, 256) < 0.03
    small, large = (mismatch(model, PredictorCorrector(Ancestral(), snr=snr), grid, 256) for snr in (0.1, 0.6))
    assert small < 0.05
    assert large > 0.15


def test_the_least_mismatch_is_found_going_downhill(device, monkeypatch):
    """Each candidate is measured once, and those beyond a hill are not."""
    asked = []

    def fake(model, sampler, grid, num_samples, cond, batch_size):
        asked.append(sampler.snr)
        return abs(sampler.snr - 0.24)

    monkeypatch.setattr("samplers.snr.mismatch", fake)
    chosen = choose_snr(gaussian(device), lambda snr: PredictorCorrector(snr=snr), torch.tensor([1.0, 0.0]))
    assert chosen == 0.25
    assert sorted(asked) == [0.1, 0.16, 0.25, 0.4]


def test_fewer_steps_ask_for_a_larger_snr(device):
    """The predictor's own error grows with its steps, and the corrector has more to repair."""
    model = gaussian(device)
    few, many = (
        choose_snr(model, lambda snr: PredictorCorrector(snr=snr), uniform_log_snr(VPSDE(), n), num_samples=64)
        for n in (20, 500)
    )
    assert few > many


def test_it_is_repeatable_and_serves_annealed_langevin(device):
    model, grid = gaussian(device), uniform_log_snr(VPSDE(), 60)

    def make(snr):
        return dataclasses.replace(AnnealedLangevin(corrector_steps=2), snr=snr)

    assert choose_snr(model, make, grid) == choose_snr(model, make, grid)


def test_no_candidates_are_named(device):
    with pytest.raises(UsageError, match=r"candidates=\(\)"):
        choose_snr(gaussian(device), lambda snr: PredictorCorrector(snr=snr), torch.tensor([1.0, 0.0]), candidates=())


def test_conditions_are_spread_over_the_pilots_samples():
    """A dict with fewer or more entries than samples: the chain and its noised samples see the same ones."""
    seen = []

    def predict(x, t, cond):
        seen.append(cond["text"]["label"].tolist())
        return -x

    model = CallableScoreModel(predict, ScoreParametrization(), VPSDE(), shape=(2,))
    grid = uniform_log_snr(model.sde, 6)
    for labels, spread in (([5, 7], [5, 7, 5, 7]), (list(range(8)), [0, 2, 4, 6])):
        seen.clear()
        mismatch(model, AnnealedLangevin(), grid, num_samples=4, cond={"text": {"label": torch.tensor(labels)}})
        assert seen == [spread] * 12  # six evaluations on the chain, and six again

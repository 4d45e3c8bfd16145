"""How many samples at a time: the rule, and what the library asks networks by default."""

from __future__ import annotations

import pytest
import torch

from samplers import (
    DDIM,
    PredictorCorrector,
    adaptive_log_prob,
    calibrate,
    choose_snr,
    fit_sampler,
    log_prob,
    reference_coupling,
    sample,
    to_data,
    to_noise,
    uniform_log_snr,
)
from scoresde import (
    VPSDE,
    EDMParametrization,
    NetworkScoreModel,
    UNet,
    UsageError,
    _batches,
    ddpm_bound,
    elbo,
)
from scoresde._batches import FORWARD, LARGE, SMALL, choose_batch_size
from tests.networks_seen import most, watched

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def chosen(shape, **known):
    return choose_batch_size(None, shape, known.pop("device", CPU), **known)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 128, 128), (1, 300, 300)])
@pytest.mark.parametrize("trained", [1, 2, 16, 300])
def test_no_more_than_a_training_step_holds_but_for_what_is_always_small(shape, trained):
    """In samples that a step differentiates: a quarter each in a forward pass, one or more for each graph."""
    dim = torch.Size(shape).numel()
    allowed = max(trained, SMALL / FORWARD / max(dim, 32))
    assert chosen(shape, trained=trained) <= max(1, FORWARD * allowed)
    for graphs in (1, 7):
        assert chosen(shape, trained=trained, graphs=graphs) <= max(1, allowed / graphs)


def test_points_and_small_images_come_in_large_batches_whatever_is_known():
    for known in ({}, {"trained": 1}, {"trained": 32}):
        assert chosen((2,), **known) >= 1000
        assert chosen((2,), graphs=1, **known) >= 300
        assert chosen((1, 8, 8), **known) >= 500


def test_a_model_of_another_machine_is_bounded_and_an_accelerator_is_kept_busy():
    assert chosen((3, 64, 64), trained=1024) * 3 * 64 * 64 <= LARGE
    assert chosen((3, 64, 64), trained=1024) == chosen((3, 64, 64), device=torch.device("cuda"))
    assert chosen((3, 32, 32), device=torch.device("cuda")) >= 256
    assert chosen((3, 1000, 1000), trained=1) == chosen((3, 1000, 1000), graphs=9) == 1


def test_a_number_that_is_given_is_obeyed_or_named():
    assert choose_batch_size(3, (2,), CPU, trained=1000) == 3
    assert choose_batch_size(5000, (3, 512, 512), CPU, graphs=3) == 5000
    with pytest.raises(UsageError, match="batch_size=-2: need at least 1"):
        choose_batch_size(-2, (2,), CPU)


@pytest.fixture
def model(monkeypatch):
    """A model for which 16 samples are few in a forward pass, and 4 in one through which is differentiated."""
    monkeypatch.setattr(_batches, "SMALL", 16 * 64)
    network = UNet(1, channels=4).requires_grad_(False)
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), SHAPE)


def clean(count):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).round()


def spread(count):
    """Samples with a density."""
    return clean(count) + 0.1 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


LEVELS = {"bin_width": 1.0, "low": -1.0, "high": 1.0}
USES = {
    "sample": lambda model, **size: sample(model, DDIM(), 40, num_steps=2, **size),
    "to_noise": lambda model, **size: to_noise(model, clean(40), num_evaluations=5, **size),
    "to_data": lambda model, **size: to_data(model, clean(40), num_evaluations=5, **size),
    "elbo": lambda model, **size: elbo(model, spread(40), num_evaluations=3, **size),
    "ddpm_bound": lambda model, **size: ddpm_bound(model, clean(40), uniform_log_snr(model.sde, 3), **LEVELS, **size),
    "log_prob": lambda model, **size: log_prob(model, spread(9), num_evaluations=5, **size),
    "adaptive_log_prob": lambda model, **size: adaptive_log_prob(model, spread(9), rtol=0.5, atol=0.5, **size),
    "choose_snr": lambda model, **size: choose_snr(
        model,
        lambda snr: PredictorCorrector(snr=snr),
        uniform_log_snr(model.sde, 5),
        num_samples=40,
        candidates=[0.1],
        **size,
    ),
    "reference": lambda model, **size: reference_coupling(model, 0.5, num_samples=40, num_evaluations=6, **size),
    "fit_sampler": lambda model, **size: fit_sampler(model, **size),
}


SLOW = {"fit_sampler"}  # of which tests/app/test_memory.py has a quicker case


@pytest.mark.parametrize(
    "use", [pytest.param(use, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, use in USES.items()]
)
def test_every_use_of_a_model_keeps_to_it_and_obeys_the_user(model, use, monkeypatch):
    calls = watched(monkeypatch, UNet)
    use(model)
    assert calls
    assert most(calls) <= 16
    assert most(calls, graph=True) <= 4
    calls.clear()
    use(model, batch_size=3)
    assert max(call.count for call in calls) == 3


@pytest.mark.slow
def test_calibration_keeps_to_it(model, monkeypatch):
    calls = watched(monkeypatch, UNet)
    sampler = fit_sampler(model)
    coupling = reference_coupling(model, 0.5, num_samples=64, num_evaluations=6)
    calibrate(model, sampler, 5, coupling)
    assert 0 < most(calls) <= 16
    assert 0 < most(calls, graph=True) <= 4

"""A model that is called with few samples at a time is the same model."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, ProbabilityFlow, sample
from scoresde import MLP, VPSDE, EDMParametrization, NetworkScoreModel, UsageError
from scoresde.models.split import SplitModel
from tests.networks_seen import most, watched


def model_of(device):
    network = MLP(2, 16, 1, num_classes=3).double().to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator(device).manual_seed(0))
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (2,))


@pytest.mark.parametrize("sampler", [DDIM(), ProbabilityFlow()])
def test_samples_are_those_of_the_model_and_the_network_sees_few_at_a_time(sampler, device, monkeypatch):
    """Tables run on a grid, adaptive solvers on levels; 11 samples are three batches of 4, the last of 3."""
    calls = watched(monkeypatch, MLP)
    model = model_of(device)
    cond = torch.arange(11, device=device) % 3
    model.requires_grad_(False)
    whole = sample(model, sampler, 11, cond=cond).x
    assert most(calls) == 11
    calls.clear()
    split = sample(SplitModel(model, 4), sampler, 11, cond=cond).x
    assert {call.count for call in calls} == {4, 3}
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-9)


def test_times_of_their_own_go_with_the_samples(device):
    model = model_of(device)
    x = torch.randn(7, 2, dtype=torch.float64, device=device)
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64, device=device)
    cond = torch.arange(7, device=device) % 3
    torch.testing.assert_close(SplitModel(model, 2).score(x, t, cond), model.score(x, t, cond), rtol=1e-9, atol=1e-9)
    with pytest.raises(UsageError, match="batch_size=0: need at least 1"):
        SplitModel(model, 0)

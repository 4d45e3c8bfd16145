"""Recorded loops: what they refuse, and that they change no bit."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, ProbabilityFlow, SDEDPMSolverSingle, prepare, sample
from samplers.base import PreparedTable
from scoresde import MLP, VPSDE, EDMParametrization, ExactScoreModel, NetworkScoreModel, Noise, UsageError
from tests.analytic import mixture
from tests.convergence import noise_for
from tests.samplers_under_test import TABLES, name


def test_a_cuda_graph_needs_a_gpu_and_a_table():
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match="cuda_graph=True: the model is on cpu"):
        sample(model, DDIM(), 3, num_steps=3, cuda_graph=True)
    for sampler in (ProbabilityFlow(), SDEDPMSolverSingle()):
        with pytest.raises(UsageError, match=r"cuda_graph=True: .* need a table without path noise"):
            sample(model, sampler, 3, cuda_graph=True)


def test_a_recorded_loop_calls_nobody():
    model = ExactScoreModel(mixture(), VPSDE())
    prepared = prepare(model, DDIM(), num_steps=3, cuda_graph=True)
    assert not isinstance(prepared, PreparedTable)
    for hook in ({"callback": print}, {"project": lambda row, level, x: x}):
        with pytest.raises(UsageError, match="cuda_graph=True: a recorded loop calls no callback and no projection"):
            sample(model, DDIM(), 3, num_steps=3, cuda_graph=True, **hook)
        with pytest.raises(UsageError, match="calls no callback and no projection; leave them out"):
            prepared.draw(noise_for(3), **hook)


def network_model(device):
    return NetworkScoreModel(MLP(2, 32, 2, num_classes=3), VPSDE(), EDMParametrization(0.5), (2,)).to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", [s for s in TABLES if s.noise != "path"], ids=name)
def test_a_replayed_graph_gives_the_same_samples(sampler, device):
    model = network_model(device)
    settings = {"num_steps": 8, "batch_size": 4, "cond": [i % 3 for i in range(10)]}
    plain, graphed = (sample(model, sampler, 10, cuda_graph=graph, **settings).x for graph in (False, True))
    assert torch.equal(plain, graphed)


@pytest.mark.gpu
@torch.no_grad()
def test_a_prepared_graph_serves_batch_after_batch_seed_after_seed(device):
    model = network_model(device)
    plain, graphed = (prepare(model, DDIM(), num_steps=8, cuda_graph=graph) for graph in (False, True))
    for seed in (0, 1, 0):
        noise = Noise(seed, torch.arange(4, device=device))
        cond = torch.tensor([seed, 1, 2, 0], device=device)
        assert torch.equal(plain.draw(noise, cond).x, graphed.draw(noise, cond).x)
